"""Ranges changed after calibration: which, to what, and what stays."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from calibration import calibrate
from calibration.methods.adjustments import clip_gelu, fuse_qkv, recalibrate_weights
from qdq.errors import CalibrationError
from qdq.models.registry import build, configure
from qdq.quantization.wrap import named_slots
from qdq.recipes.apply import quantize
from qdq.recipes.edits import per_tensor_weights
from qdq.recipes.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from qdq.quantization.quantizer import Quantizer, Range

PRODUCTS = ("scores.input", "scores.other", "context.other")
WEIGHTS = ("query.weight", "key.weight", "value.weight")


def calibrated(recipe: Recipe | str = "qdqbert", *, family: str = "bert") -> nn.Module:
    torch.manual_seed(0)
    fields = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    fields |= {"num_attention_heads": 2, "max_position_embeddings": 16, "initializer_range": 0.5}
    if family == "albert":
        fields["embedding_size"] = 16
    model = quantize(build(configure(family, **fields)), recipe)
    calibrate(model, [{"input_ids": torch.randint(5, 50, (2, 8))}])
    return model


def ranges(model: nn.Module) -> dict[str, Range | None]:
    return {str(slot): quantizer.range for slot, quantizer in named_slots(model)}


def scales(model: nn.Module) -> dict[str, Tensor]:
    return {str(slot): q.scale.clone() for slot, q in named_slots(model) if q.spec is not None}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def quantizer(model: nn.Module, name: str) -> Quantizer:
    return {str(slot): q for slot, q in named_slots(model)}[name]


def parts(range_: Range | None) -> list[float]:
    assert range_ is not None
    return [range_.lower.item(), range_.upper.item(), range_.amax.item()]


class TestFuse:
    def test_products_get_the_largest_range_of_their_own_attention(self) -> None:
        model = calibrated()
        before, old = ranges(model), scales(model)
        changed = [str(slot) for slot in fuse_qkv(model)]
        names = [[f"encoder.layers.{layer}.attention.{slot}" for slot in PRODUCTS] for layer in (0, 1)]
        assert changed == [name for layer in names for name in layer]
        after, new = ranges(model), scales(model)
        for layer in names:
            low, high, amax = zip(*(parts(before[name]) for name in layer), strict=True)
            for name in layer:
                assert parts(after[name]) == [min(low), max(high), max(amax)]
                assert new[name].item() == pytest.approx(max(amax) / 127, rel=1e-6)
        assert new[names[0][0]] != new[names[1][0]], "layers are fused by themselves"
        assert all(torch.equal(new[name], old[name]) for name in old if name not in changed)

    def test_weights_only_where_all_three_have_one_scale(self) -> None:
        assert not any(slot.name == "weight" for slot in fuse_qkv(calibrated())), "per axis"
        model = calibrated(per_tensor_weights(load_recipe("qdqbert")))
        changed = {str(slot) for slot in fuse_qkv(model)}
        for layer in (0, 1):
            attention = model.get_submodule(f"encoder.layers.{layer}.attention")
            assert isinstance(attention, nn.Module)
            largest = max(attention.get_submodule(name).weight.abs().max().item() for name in ("query", "key", "value"))
            for slot in WEIGHTS:
                name = f"encoder.layers.{layer}.attention.{slot}"
                assert name in changed
                assert quantizer(model, name).scale.item() == pytest.approx(largest / 127, rel=1e-6)

    def test_floats_are_fused_for_later(self) -> None:
        model = calibrated("linear")
        before = scales(model)
        changed = fuse_qkv(model)
        assert [slot.name for slot in changed] == ["input", "other", "other"] * 2
        assert all(quantizer(model, str(slot)).spec is None for slot in changed)
        assert same(before, scales(model))
        assert len({tuple(parts(ranges(model)[str(slot)])) for slot in changed[:3]}) == 1

    def test_what_has_no_range_is_left_alone(self) -> None:
        model = calibrated()
        quantizer(model, "encoder.layers.0.attention.scores.other").range = None
        assert {slot.module.split(".")[2] for slot in fuse_qkv(model)} == {"1"}

    def test_layers_that_share_weights(self) -> None:
        model = calibrated(per_tensor_weights(load_recipe("qdqbert")), family="albert")
        fuse_qkv(model)
        one, other = (quantizer(model, f"encoder.layers.{n}.attention.key.weight") for n in (0, 1))
        assert one is other
        attention = model.get_submodule("encoder.layers.0.attention")
        largest = max(attention.get_submodule(name).weight.abs().max().item() for name in ("query", "key", "value"))
        assert one.scale.item() == pytest.approx(largest / 127, rel=1e-6)


class TestClip:
    @pytest.mark.parametrize("preset", ["qdqbert", "onnxruntime"], ids=["symmetric", "affine"])
    def test_the_bound_is_the_largest_value_of_the_grid(self, preset: str) -> None:
        model = calibrated(preset)
        before = scales(model)
        changed = [str(slot) for slot in clip_gelu(model, 0.25)]
        assert changed == [f"encoder.layers.{layer}.feed_forward.down.input" for layer in (0, 1)]
        for name in changed:
            own = quantizer(model, name)
            assert own.spec is not None
            top = (own.spec.qmax - own.zero_point.item()) * own.scale.item()
            # An affine grid may end half a step away: its zero point is a whole number.
            assert top == pytest.approx(0.25, abs=1e-6 if own.spec.symmetric else 0.51 * own.scale.item())
            assert own.scale < before[name]
        after = scales(model)
        assert all(torch.equal(after[name], before[name]) for name in before if name not in changed)

    def test_a_bound_above_all_values_changes_nothing(self) -> None:
        model = calibrated()
        before = scales(model)
        assert clip_gelu(model, 1e6)
        assert same(before, scales(model))

    @pytest.mark.parametrize("bound", [0.0, -1.0, math.nan, math.inf])
    def test_bounds_that_are_none(self, bound: float) -> None:
        with pytest.raises(CalibrationError, match="must be a positive number"):
            clip_gelu(calibrated(), bound)


class TestWeights:
    def test_scales_follow_weights_that_changed(self) -> None:
        model = calibrated()
        before = scales(model)
        linear = model.get_submodule("encoder.layers.0.attention.query")
        assert isinstance(linear.weight, nn.Parameter)
        with torch.no_grad():
            linear.weight.mul_(torch.arange(1, 17)[:, None])
        changed = [str(slot) for slot in recalibrate_weights(model)]
        assert changed == [name for name in before if name.endswith(".weight")]
        after = scales(model)
        assert torch.allclose(after["encoder.layers.0.attention.query.weight"], linear.weight.abs().amax(1) / 127)
        others = [name for name in before if name != "encoder.layers.0.attention.query.weight"]
        assert all(torch.equal(after[name], before[name]) for name in others)

    def test_weights_that_have_no_range(self) -> None:
        model = calibrated()
        weight = model.get_submodule("encoder.layers.0.attention.query").weight
        assert isinstance(weight, nn.Parameter)
        weight.data.fill_(torch.nan)
        with pytest.raises(CalibrationError, match="NaN"):
            recalibrate_weights(model)
