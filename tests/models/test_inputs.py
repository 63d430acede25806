"""Wrong input is refused by one message that names what was given and the limit."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from qdq.errors import DataError
from qdq.models.inputs import InputError
from qdq.models.registry import build, configure

if TYPE_CHECKING:
    from tests.models.support import SmallModels

IDS = torch.full((2, 6), 5)
BERT: dict[str, tuple[dict[str, Any], str]] = {
    "no ids": ({}, "exactly one of input_ids and inputs_embeds"),
    "ids and embeds": ({"input_ids": IDS, "inputs_embeds": torch.zeros(2, 6, 32)}, "exactly one of input_ids"),
    "ids of one axis": ({"input_ids": IDS[0]}, r"input_ids has shape \[6\], must be \[batch, seq\]"),
    "ids of three axes": ({"input_ids": IDS[None]}, r"input_ids has shape \[1, 2, 6\], must be \[batch, seq\]"),
    "floating ids": ({"input_ids": IDS.float()}, "input_ids has dtype torch.float32, must be whole numbers"),
    "id beyond the vocabulary": (
        {"input_ids": IDS + 78},
        "input_ids must be between 0 and 82, the vocabulary; found 83",
    ),
    "negative id": ({"input_ids": IDS - 6}, "found -1"),
    "embeds of another width": ({"inputs_embeds": torch.zeros(2, 6, 31)}, r"must be \[batch, seq, 32\]"),
    "sequence too long": (
        {"input_ids": torch.full((1, 41), 5)},
        "a sequence of 41 tokens is too long: the model takes at most 40",
    ),
    "mask of another length": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 5)},
        r"attention_mask has shape \[2, 5\], must be \[2, 6\] or \[2, 6, 6\]",
    ),
    "mask of four axes": (
        {"input_ids": IDS, "attention_mask": torch.ones(2, 1, 6, 6)},
        r"attention_mask has shape \[2, 1, 6, 6\], must be \[2, 6\] or \[2, 6, 6\]",
    ),
    "token types of another shape": (
        {"input_ids": IDS, "token_type_ids": IDS[:, :3]},
        r"token_type_ids has shape \[2, 3\], must be \[2, 6\]",
    ),
    "token type beyond the table": (
        {"input_ids": IDS, "token_type_ids": IDS},
        "between 0 and 2, the token types; found 5",
    ),
    "position beyond the table": (
        {"input_ids": IDS, "position_ids": torch.tensor([[0, 1, 2, 3, 40, 41]])},
        "position_ids must be between 0 and 39, the table of positions; found 40, 41",
    ),
    "positions of another shape": ({"input_ids": IDS, "position_ids": IDS[:, :2]}, "position_ids has shape"),
    "head mask": (
        {"input_ids": IDS, "head_mask": torch.ones(3)},
        r"head_mask has shape \[3\], must be \[4\] or \[3, 4\]",
    ),
    "cross-attention without decoder": (
        {"input_ids": IDS, "encoder_hidden_states": torch.zeros(2, 4, 32)},
        "the model is no decoder: set is_decoder",
    ),
}


@pytest.mark.parametrize(("inputs", "message"), BERT.values(), ids=BERT.keys())
def test_wrong_inputs(inputs: dict[str, Any], message: str, small_models: SmallModels) -> None:
    model = small_models.build("bert")
    with pytest.raises(InputError, match=message):
        model(**inputs)


def test_errors_are_ours_and_pythons() -> None:
    assert issubclass(InputError, DataError)
    assert issubclass(InputError, ValueError)


def test_unknown_argument(small_models: SmallModels) -> None:
    with pytest.raises(TypeError, match="attention_masks"):
        small_models.build("bert")(IDS, attention_masks=IDS)


DECODER: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no cross-attention": (
        {},
        {"encoder_hidden_states": torch.zeros(2, 4, 32)},
        "encoder_hidden_states need cross-attention: set add_cross_attention",
    ),
    "states of another width": (
        {"add_cross_attention": True},
        {"encoder_hidden_states": torch.zeros(2, 4, 31)},
        r"encoder_hidden_states has shape \[2, 4, 31\], must be \[2, 4, 32\]",
    ),
    "mask of another length": (
        {"add_cross_attention": True},
        {"encoder_hidden_states": torch.zeros(2, 4, 32), "encoder_attention_mask": torch.ones(2, 5)},
        r"encoder_attention_mask has shape \[2, 5\], must be \[2, 4\] or \[2, 6, 4\]",
    ),
    "mask of one axis": (
        {"add_cross_attention": True},
        {"encoder_hidden_states": torch.zeros(2, 4, 32), "encoder_attention_mask": torch.ones(4)},
        r"encoder_attention_mask has shape \[4\], must be \[2, 4\] or \[2, 6, 4\]",
    ),
    "cache too long": (
        {},
        {"past_key_values": ((torch.zeros(2, 4, 35, 8),) * 2,) * 3},
        "6 tokens and 35 cached is too long: the model takes at most 40",
    ),
}


@pytest.mark.parametrize(("config", "inputs", "message"), DECODER.values(), ids=DECODER.keys())
def test_wrong_inputs_of_a_decoder(
    config: dict[str, Any], inputs: dict[str, Any], message: str, small_models: SmallModels
) -> None:
    model = small_models.build("bert", is_decoder=True, **config)
    with pytest.raises(InputError, match=message):
        model(IDS, **inputs)


def test_roberta_takes_fewer_tokens_than_positions(small_models: SmallModels) -> None:
    model = small_models.build("roberta-prelayernorm")
    assert model(torch.full((1, 38), 5)).last_hidden_state.shape == (1, 38, 32)
    with pytest.raises(InputError, match="39 tokens is too long: the model takes at most 38"):
        model(torch.full((1, 39), 5))


@pytest.mark.parametrize("kind", ["relative_key", "relative_key_query"])
def test_relative_positions_end_at_the_table(kind: str, small_models: SmallModels) -> None:
    model = small_models.build("bert", position_embedding_type=kind)
    with pytest.raises(InputError, match="relative positions reach 40 tokens, got 41"):
        model(torch.full((1, 41), 5))


def test_qdqbert_has_no_relative_positions_with_a_cache(small_models: SmallModels) -> None:
    fields = small_models.fields("qdqbert", is_decoder=True, position_embedding_type="relative_key")
    model = build(configure("qdqbert", **fields)).eval()
    cache = model(IDS).past_key_values
    with pytest.raises(InputError, match="cannot be used together with a cache"):
        model(IDS[:, :1], past_key_values=cache)


def test_chunks_must_divide_the_sequence(small_models: SmallModels) -> None:
    model = small_models.build("bert", chunk_size_feed_forward=4)
    with pytest.raises(InputError, match="6 tokens is not a multiple of chunk_size_feed_forward 4"):
        model(IDS)


LABELS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "class beyond": (
        "token-classification",
        {},
        {"labels": IDS},
        r"labels must be between 0 and 1 \(or -100, ignored\)",
    ),
    "negative class": ("sequence-classification", {}, {"labels": torch.tensor([0, -1])}, "found -1"),
    "token beyond": ("masked-lm", {}, {"labels": IDS + 90}, "between 0 and 82"),
    "one label too few": (
        "masked-lm",
        {},
        {"labels": IDS[:, 1:]},
        r"labels has shape \[2, 5\], the logits \[2, 6, 83\]",
    ),
    "labels of a causal model": (
        "causal-lm",
        {},
        {"labels": IDS[:, 1:]},
        r"labels has shape \[2, 5\], must be \[2, 6\]",
    ),
    "whole numbers for regression": (
        "sequence-classification",
        {"num_labels": 1},
        {"labels": torch.tensor([1, 2])},
        "labels for regression have dtype torch.int64, must be floating point",
    ),
    "shape of several labels": (
        "sequence-classification",
        {"num_labels": 3},
        {"labels": torch.zeros(2, 2)},
        r"labels has shape \[2, 2\], must be \[2, 3\] for multi_label",
    ),
    "positions": (
        "question-answering",
        {},
        {"start_positions": torch.tensor([1]), "end_positions": torch.tensor([1, 2])},
        r"start_positions has shape \[1\], must be \[2\]",
    ),
    "second label": (
        "pre-training",
        {},
        {"labels": IDS, "next_sentence_label": torch.tensor([0, 2])},
        "next_sentence_label must be between 0 and 1",
    ),
}


@pytest.mark.parametrize(("task", "config", "labels", "message"), LABELS.values(), ids=LABELS.keys())
def test_wrong_labels(
    task: str, config: dict[str, Any], labels: dict[str, Any], message: str, small_models: SmallModels
) -> None:
    model = small_models.build("bert", task, **config)
    with pytest.raises(InputError, match=message):
        model(IDS, **labels)


def test_multiple_choice_wants_choices(small_models: SmallModels) -> None:
    model = small_models.build("bert", "multiple-choice")
    with pytest.raises(InputError, match=r"multiple choice takes inputs \[batch, choices, seq\], got \[2, 6\]"):
        model(IDS)
    with pytest.raises(InputError, match="exactly one of"):
        model()


REALM: dict[str, tuple[str, dict[str, Any], str]] = {
    "scorer without candidates": ("scoring", {}, "candidate_input_ids or candidate_inputs_embeds"),
    "scorer with three candidates": (
        "scoring",
        {"candidate_input_ids": torch.full((2, 3, 6), 5)},
        "6 candidates for 2 questions: num_candidates is 2",
    ),
    "labels without relevance": ("masked-lm", {"labels": IDS}, "labels need a relevance_score"),
    "relevance of another shape": (
        "masked-lm",
        {"labels": IDS[:1], "relevance_score": torch.zeros(1, 3)},
        r"relevance_score has shape \[1, 3\], must be \[1, 2\]",
    ),
    "labels of another batch": (
        "masked-lm",
        {"labels": IDS, "relevance_score": torch.zeros(2, 2)},
        r"the inputs must be \[2, 2, 6\], together they are \[2, 6\]",
    ),
    "reader without mask": ("question-answering", {"relevance_score": torch.zeros(2)}, "needs relevance_score"),
}


@pytest.mark.parametrize(("task", "inputs", "message"), REALM.values(), ids=REALM.keys())
def test_wrong_inputs_of_realm(task: str, inputs: dict[str, Any], message: str, small_models: SmallModels) -> None:
    model = small_models.build("realm", task)
    with pytest.raises(InputError, match=message):
        model(IDS, **inputs)


def test_reader_needs_room_for_the_widest_span(small_models: SmallModels) -> None:
    model = small_models.build("realm", "question-answering", max_span_width=7)
    with pytest.raises(InputError, match="6 tokens is shorter than max_span_width 7"):
        model(IDS, relevance_score=torch.zeros(2), block_mask=torch.ones(2, 6))
