"""Key tables: names in both directions, and tensors in which upstream stores several weights."""

from __future__ import annotations

import pytest
import torch

from qdq.models.keymap import BERT_KEYS, FusedPart, below, fused, name_of, select_part, shape_of_whole, translate


def test_fused_modules_are_numbered_in_order() -> None:
    assert fused("Wqkv", "query", "key", "value") == {
        "query": FusedPart("Wqkv", 0, 3),
        "key": FusedPart("Wqkv", 1, 3),
        "value": FusedPart("Wqkv", 2, 3),
    }


def test_prefixes_of_both_sides() -> None:
    keys = below("layers.{}.attention", "h.{}.attn", {**fused("Wqkv", "query", "key"), "output": "Wo"})
    assert keys == {
        "layers.{}.attention.query": FusedPart("h.{}.attn.Wqkv", 0, 2),
        "layers.{}.attention.key": FusedPart("h.{}.attn.Wqkv", 1, 2),
        "layers.{}.attention.output": "h.{}.attn.Wo",
    }
    assert [name_of(key) for key in keys.values()] == ["h.{}.attn.Wqkv", "h.{}.attn.Wqkv", "h.{}.attn.Wo"]


@pytest.mark.parametrize("shape", [(6, 4), (6,)], ids=["weight", "bias"])
def test_parts_are_views_that_make_up_the_whole(shape: tuple[int, ...]) -> None:
    whole = torch.randn(shape)
    parts = [select_part(key, whole) for key in fused("Wqkv", "query", "key", "value").values()]
    assert torch.equal(torch.cat(parts), whole)
    for index, (part, key) in enumerate(zip(parts, fused("Wqkv", "a", "b", "c").values(), strict=True)):
        assert part.data_ptr() == whole[2 * index :].data_ptr()
        assert shape_of_whole(key, part.shape) == list(shape)
    assert select_part("Wo", whole) is whole
    assert shape_of_whole("Wo", whole.shape) == list(shape)


def test_names_of_parameters() -> None:
    keys = {**below("layers.{}", "h.{}.inner.{}", {"up": "Wi", **fused("Wqkv", "query", "key")}), "norm": "final"}
    layers = [(0, 0), (0, 1), (1, 0)]
    assert translate("norm.weight", keys, layers) == "final.weight"
    assert translate("layers.2.up.bias", keys, layers) == "h.1.inner.0.Wi.bias"
    assert translate("layers.1.key.weight", keys, layers) == FusedPart("h.0.inner.1.Wqkv.weight", 1, 2)
    with pytest.raises(KeyError):
        translate("layers.1.gate.weight", keys, layers)


def test_an_entry_for_a_parameter_goes_before_that_of_its_module() -> None:
    keys = {"head.decoder": "cls.decoder", "head.decoder.bias": "cls.bias"}
    assert translate("head.decoder.weight", keys, []) == "cls.decoder.weight"
    assert translate("head.decoder.bias", keys, []) == "cls.bias"


def test_no_two_modules_of_bert_have_one_name() -> None:
    assert len(set(BERT_KEYS.values())) == len(BERT_KEYS)
