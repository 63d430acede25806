from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from exporters.export_model import cache_names, wrap_for_export
from exporters.interface import ExportInterface
from exporters.io_signature import PAST_AND_SEQ, example_inputs, token_inputs
from qdq.tasks.pooling import pool

if TYPE_CHECKING:
    from qdq.source import Pooling
    from tests.exporters.conftest import TinyModels

BATCH_SEQ = ("batch", "seq")


@pytest.mark.parametrize(
    ("task", "outputs"),
    [
        ("feature-extraction", ("last_hidden_state", "pooler_output")),
        ("sequence-classification", ("logits",)),
        ("token-classification", ("logits",)),
        ("question-answering", ("start_logits", "end_logits")),
        ("masked-lm", ("logits",)),
        ("next-sentence", ("logits",)),
        ("pre-training", ("prediction_logits", "seq_relationship_logits")),
    ],
)
def test_outputs_are_what_the_task_computes_without_labels(
    tiny_models: TinyModels, task: str, outputs: tuple[str, ...]
) -> None:
    signature = wrap_for_export(tiny_models.model(task=task)).signature
    assert (signature.inputs, signature.outputs) == (token_inputs(), outputs)


def test_choices_have_an_axis(tiny_models: TinyModels) -> None:
    signature = wrap_for_export(tiny_models.model(task="multiple-choice")).signature
    assert {entry.axes for entry in signature.inputs} == {("batch", "choices", "seq")}
    assert signature.outputs == ("logits",)


def test_a_scorer_takes_a_question_and_its_candidates(tiny_models: TinyModels) -> None:
    signature = wrap_for_export(tiny_models.model("realm", "scoring", num_candidates=3)).signature
    names = ("input_ids", "attention_mask", "token_type_ids")
    assert signature.input_names == (*names, *(f"candidate_{name}" for name in names))
    assert signature.inputs[3].axes == ("batch", 3, "candidate_seq")
    assert signature.outputs == ("relevance_score", "query_score", "candidate_score")


def test_a_reader_takes_its_blocks_and_where_their_evidence_is(tiny_models: TinyModels) -> None:
    signature = wrap_for_export(
        tiny_models.model("realm", "question-answering", reader_beam_size=3, max_span_width=4)
    ).signature
    assert [(entry.name, entry.axes, entry.dtype) for entry in signature.inputs[-2:]] == [
        ("relevance_score", (3,), "float32"),
        ("block_mask", (3, "seq"), "int64"),
    ]
    assert signature.outputs == ("block_idx", "candidate", "start_pos", "end_pos")


@pytest.mark.parametrize("cross", [False, True], ids=["text alone", "cross-attention"])
def test_a_cache_is_asked_for_and_has_the_ecosystems_names(tiny_models: TinyModels, cross: bool) -> None:
    model = tiny_models.model(task="causal-lm", is_decoder=True, add_cross_attention=cross)
    plain, first, step = (
        wrap_for_export(model, ExportInterface(cache=cache)).signature for cache in (None, "first", "step")
    )
    own, all_of_it = cache_names(0, crossed=cross)[:2], cache_names(0, crossed=cross)
    other = ("encoder_hidden_states", "encoder_attention_mask") if cross else ()
    assert plain.outputs == ("logits",)
    assert plain.inputs == first.inputs
    assert plain.input_names[3:] == other
    assert first.outputs == ("logits", *cache_names(0, "present", crossed=cross))
    assert step.outputs == ("logits", *cache_names(0, "present", crossed=cross)[:2])
    assert step.input_names[3:] == (*other[1:], *all_of_it)
    axes = {entry.name: entry.axes for entry in step.inputs}
    assert axes["attention_mask"] == ("batch", PAST_AND_SEQ)
    assert {axes[name] for name in own} == {("batch", 4, "past_seq", 8)}
    assert cache_names(0, crossed=False) == ["past_key_values.0.key", "past_key_values.0.value"]


@pytest.mark.parametrize("cross", [False, True], ids=["text alone", "cross-attention"])
def test_steps_find_what_the_whole_text_gives(tiny_models: TinyModels, cross: bool) -> None:
    model = tiny_models.model(task="causal-lm", is_decoder=True, add_cross_attention=cross)
    whole, first, step = (wrap_for_export(model, ExportInterface(cache=cache)) for cache in (None, "first", "step"))
    batch = example_inputs(whole.signature.inputs, vocab_size=83, seq_len=9)
    expected = whole.run(batch)["logits"]
    cut = {name: value if name.startswith("encoder") else value[:, :5] for name, value in batch.items()}
    found = first.run(cut)
    parts = [found["logits"]]
    cache = dict(
        zip(cache_names(0, crossed=cross), (found[n] for n in cache_names(0, "present", crossed=cross)), strict=True)
    )
    for at in range(5, 9):
        token = {name: batch[name][:, at : at + 1] for name in ("input_ids", "token_type_ids")}
        rest = {"attention_mask": batch["attention_mask"][:, : at + 1]}
        if cross:
            rest["encoder_attention_mask"] = batch["encoder_attention_mask"]
        found = step.run({**token, **rest, **cache})
        parts.append(found["logits"])
        for name, new in zip(cache_names(0, crossed=cross), cache_names(0, "present", crossed=cross), strict=True):
            cache[name] = found.get(new, cache[name])
    torch.testing.assert_close(torch.cat(parts, dim=1), expected, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("how", ["mean", "cls", "max"])
def test_pooling_is_what_evaluation_does(tiny_models: TinyModels, how: Pooling) -> None:
    model = tiny_models.model()
    export_model = wrap_for_export(model, ExportInterface(pooling=how))
    assert export_model.signature.outputs == ("sentence_embedding",)
    batch = example_inputs(token_inputs(), vocab_size=83, batch_size=4, padding=3)
    batch["attention_mask"][2, :2] = 0  # on the left
    with torch.no_grad():
        hidden = model(**batch).last_hidden_state.numpy()
    expected = pool(hidden, batch["attention_mask"].numpy(), how)
    np.testing.assert_allclose(export_model.run(batch)["sentence_embedding"].numpy(), expected, atol=1e-5)
    found = (
        wrap_for_export(model, ExportInterface(pooling=how, normalize=True)).run(batch)["sentence_embedding"].numpy()
    )
    np.testing.assert_allclose(found, expected / np.linalg.norm(expected, axis=-1, keepdims=True), atol=1e-5)


def test_a_text_of_padding_alone_has_a_vector(tiny_models: TinyModels) -> None:
    batch = example_inputs(token_inputs(), vocab_size=83)
    batch["attention_mask"][0] = 0
    for how in ("mean", "max", "cls"):
        assert torch.isfinite(
            wrap_for_export(tiny_models.model(), ExportInterface(pooling=how)).run(batch)["sentence_embedding"]
        ).all()


def test_a_retrievers_vector_can_be_normalized(tiny_models: TinyModels) -> None:
    model = tiny_models.model("realm", "retrieval")
    batch = example_inputs(token_inputs(), vocab_size=83)
    raw, unit = (
        wrap_for_export(model, ExportInterface(normalize=n)).run(batch)["projected_score"] for n in (False, True)
    )
    torch.testing.assert_close(unit, raw / raw.norm(dim=-1, keepdim=True))


def test_probabilities_and_labels(tiny_models: TinyModels) -> None:
    batch = example_inputs(token_inputs(), vocab_size=83)
    model = tiny_models.model(task="sequence-classification", num_labels=4)
    logits = wrap_for_export(model).run(batch)["logits"]
    both = wrap_for_export(model, ExportInterface(softmax=True, argmax=True)).run(batch)
    assert list(both) == ["probabilities", "labels"]
    torch.testing.assert_close(both["probabilities"], logits.softmax(-1))
    assert both["labels"].tolist() == logits.argmax(-1).tolist()
    several = tiny_models.model(task="sequence-classification", problem_type="multi_label_classification")
    logits = wrap_for_export(several).run(batch)["logits"]
    found = wrap_for_export(several, ExportInterface(softmax=True)).run(batch)["probabilities"]
    torch.testing.assert_close(found, logits.sigmoid())


def test_inputs_of_choice(tiny_models: TinyModels) -> None:
    model = tiny_models.model()
    batch = example_inputs(token_inputs(), vocab_size=83, padding=2)
    expected = wrap_for_export(model).run(batch)["last_hidden_state"]
    short = wrap_for_export(model, ExportInterface(token_type_ids=False))
    assert short.signature.input_names == ("input_ids", "attention_mask")
    assert torch.equal(short.run(batch)["last_hidden_state"], expected)
    narrow = wrap_for_export(model, ExportInterface(int32_ids=True))
    assert {entry.dtype for entry in narrow.signature.inputs} == {"int32"}
    assert torch.equal(narrow.run({n: v.int() for n, v in batch.items()})["last_hidden_state"], expected)
    embedded = wrap_for_export(model, ExportInterface(inputs_embeds=True))
    assert embedded.signature.inputs[0].axes == (*BATCH_SEQ, 32)
    with torch.no_grad():
        words = model.embeddings.word(batch["input_ids"])
    found = embedded.run({"inputs_embeds": words, **batch})["last_hidden_state"]
    torch.testing.assert_close(found, expected)


def test_what_a_configuration_makes_the_model_return_besides_is_no_output(tiny_models: TinyModels) -> None:
    model = tiny_models.model(output_attentions=True, output_hidden_states=True, return_dict=False)
    assert wrap_for_export(model).signature.outputs == ("last_hidden_state", "pooler_output")
