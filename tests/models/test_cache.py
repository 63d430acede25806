"""Decoding step by step: with a cache, the numbers are those of one pass over all tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from qdq.models.cache import append_hidden_padding, new_tokens, reorder_cache
from qdq.models.inputs import InputError
from tests.models.support import assert_same

if TYPE_CHECKING:
    from tests.models.support import SmallModels

DECODERS = ["bert", "qdqbert", "megatron-bert", "roberta", "roberta-prelayernorm", "realm"]


@pytest.mark.parametrize("model_type", DECODERS)
@pytest.mark.parametrize("cross", [False, True], ids=["self", "cross"])
def test_cached_steps_equal_one_pass(model_type: str, cross: bool, small_models: SmallModels) -> None:
    model = small_models.build(model_type, is_decoder=True, add_cross_attention=cross)
    ids = torch.randint(4, 83, (2, 9))
    memory = {"encoder_hidden_states": torch.randn(2, 5, 32)} if cross else {}
    with torch.no_grad():
        whole = model(ids, **memory).last_hidden_state
        step = model(ids[:, :4], **memory)
        assert len(step.past_key_values[0]) == (4 if cross else 2)
        pieces = [step.last_hidden_state]
        for start, stop in ((4, 7), (7, 8), (8, 9)):
            step = model(**new_tokens(ids[:, :stop], step.past_key_values), **memory)
            assert step.last_hidden_state.shape[1] == stop - start
            pieces.append(step.last_hidden_state)
    assert_same(torch.cat(pieces, dim=1), whole)


def test_new_tokens_keeps_the_last_when_all_are_cached() -> None:
    ids = torch.tensor([[5, 6, 7]])
    cache = ((torch.zeros(1, 1, 3, 1),) * 2,)
    assert new_tokens(ids, cache)["input_ids"].tolist() == [[7]]
    assert new_tokens(ids, None)["input_ids"].tolist() == [[5, 6, 7]]
    mask = torch.tensor([[0, 1, 1]])
    assert new_tokens(ids, cache, mask)["attention_mask"] is mask


def test_appended_padding_is_hidden_from_all_tokens(small_models: SmallModels) -> None:
    ids, mask = torch.tensor([[5, 6, 7], [8, 9, 1]]), torch.tensor([[1, 1, 1], [1, 1, 0]])
    given = append_hidden_padding(ids, mask, 0)
    assert given["input_ids"].tolist() == [[5, 6, 7, 0], [8, 9, 1, 0]]
    assert given["attention_mask"].tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    model = small_models.build("bert", "masked-lm")
    with torch.no_grad():
        assert_same(model(**given).logits[:, :3], model(ids, mask).logits)
        assert_same(model(**append_hidden_padding(ids, None, 0)).logits[:, :3], model(ids).logits)
    with pytest.raises(InputError, match="pad_token_id is null"):
        append_hidden_padding(ids, mask, None)


def test_reordered_cache_continues_the_chosen_beams(small_models: SmallModels) -> None:
    model = small_models.build("bert", "causal-lm", is_decoder=True)
    ids, beams = torch.randint(4, 83, (3, 5)), torch.tensor([2, 2, 0])
    with torch.no_grad():
        cache = reorder_cache(model(ids).past_key_values, beams)
        got = model(torch.full((3, 1), 9), past_key_values=cache).logits
        want = model(torch.cat([ids[beams], torch.full((3, 1), 9)], dim=1)).logits[:, -1:]
    assert_same(got, want)


def test_sdpa_decodes_like_eager(small_models: SmallModels) -> None:
    model = small_models.build("bert", is_decoder=True)
    ids, mask = torch.randint(4, 83, (2, 6)), torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    with torch.no_grad():
        want = model(ids, mask).last_hidden_state
        model.set_attn_implementation("sdpa")
        assert_same(model(ids, mask).last_hidden_state, want)
        # what the fused function cannot give comes from the modules
        assert len(model(ids, mask, output_attentions=True).attentions) == 3


def test_cache_is_given_only_when_asked_for(small_models: SmallModels) -> None:
    ids = torch.full((1, 3), 5)
    assert small_models.build("bert")(ids, use_cache=True).past_key_values is None
    # a model that is no decoder may still be given a cache, as for learned prefixes
    prefix = ((torch.randn(1, 4, 2, 8),) * 2,) * 3
    assert small_models.build("bert")(ids, past_key_values=prefix).last_hidden_state.shape == (1, 3, 32)
    decoder = small_models.build("bert", "causal-lm", is_decoder=True)
    assert decoder(ids).past_key_values is not None
    assert decoder(ids, use_cache=False).past_key_values is None
    assert decoder(ids, labels=ids).past_key_values is None
    assert small_models.build("bert", is_decoder=True, use_cache=False)(ids).past_key_values is None
