"""Smoothing, rounding, bias correction and folding, on small models of every family."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from calibration import Entropy, calibrate, calibrate_and_refine, refine, smooth
from qdq.checkpoint import load, save
from qdq.errors import CalibrationError
from qdq.models.registry import FAMILIES, build, configure
from qdq.quantization.fold import folded, without_transforms
from qdq.quantization.graph import quantized_reads
from qdq.quantization.modules import QuantLinear
from qdq.quantization.quantizer import Mode, quantizers, set_mode
from qdq.quantization.wrap import named_slots
from qdq.recipes.apply import apply_recipe, quantize
from qdq.recipes.recipe import load_recipe
from qdq.recipes.refinement import Refinement

if TYPE_CHECKING:
    from pathlib import Path

    from qdq.models.model import Model

SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
}
OWN = {"albert": {"embedding_size": 8}, "realm": {"retriever_proj_size": 6}}
ENCODERS = [name for name in FAMILIES if name != "realm"]
EVERYTHING = Refinement(shift=True, smoothing=0.9, bias_correction=True, rounding="gptq")
RECIPES = ("onnxruntime", "tensorrt")


def model_of(family: str, recipe: str | None = None, task: str | None = None, **changes: Any) -> Model:
    """Return a model with outlier channels in its norms, the same each time, wrapped if a preset is named."""
    torch.manual_seed(0)
    model = build(configure(family, **{**SMALL, **OWN.get(family, {}), **changes}), task).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.copy_(torch.rand_like(module.weight) + 0.5)
                module.bias.copy_(torch.randn_like(module.bias) * 0.3)
                if module.weight.numel() > 3:
                    module.weight[3] *= 10
                    module.bias[5] += 8
            elif isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.copy_(torch.randn_like(module.bias) * 0.2)
    if recipe is not None:
        quantize(model, recipe)
    return model


def batches(count: int = 3, *, seed: int = 0) -> list[dict[str, Tensor]]:
    """Return padded batches of different lengths."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for index in range(count):
        length = 9 + 3 * (index % 5)
        mask = torch.ones(4, length, dtype=torch.long)
        mask[1, length - 4 :] = 0
        made.append({"input_ids": torch.randint(2, 61, (4, length), generator=generator), "attention_mask": mask})
    return made


def outputs(model: nn.Module, made: list[dict[str, Tensor]] | None = None) -> list[Tensor]:
    with torch.no_grad():
        return [model(**batch).last_hidden_state[batch["attention_mask"] != 0] for batch in made or batches()]


def noise(got: list[Tensor], want: list[Tensor]) -> float:
    """Return the power of the difference, relative to that of ``want``."""
    difference = sum(float((a - b).square().sum()) for a, b in zip(got, want, strict=True))
    return difference / sum(float(b.square().sum()) for b in want)


class TestInputsOfLinears:
    @pytest.mark.parametrize("family", ENCODERS)
    def test_every_linear_of_the_encoder_has_one_input(self, family: str) -> None:
        model = model_of(family, "linear")
        found = [linear for read in quantized_reads(model) for linear in read.linears]
        wanted = [
            module for name, module in model.named_modules() if "encoder." in name and type(module) is QuantLinear
        ]
        assert sorted(map(id, found)) == sorted(map(id, wanted))

    @pytest.mark.parametrize("family", ENCODERS)
    def test_readers_of_a_norm_get_its_output(self, family: str) -> None:
        model = model_of(family, "linear")
        seen: dict[nn.Module, Tensor] = {}
        for read in quantized_reads(model):
            for module in (read.norm, read.add, *read.linears):
                if module is not None:
                    which = -1 if module is read.add else 0
                    module.register_forward_hook(
                        lambda m, args, out, which=which: seen.__setitem__(
                            m, out if isinstance(m, nn.LayerNorm) else args[which]
                        )
                    )
        outputs(model, batches(1))
        normed = [read for read in quantized_reads(model) if read.norm is not None]
        assert normed
        for read in normed:
            assert read.norm is not None
            readers = [*read.linears, *([read.add] if read.add else [])]
            assert read.source is None
            assert all(torch.equal(seen[read.norm], seen[reader]) for reader in readers)

    def test_keys_and_values_of_cross_attention_have_no_known_origin(self) -> None:
        model = model_of("bert", "linear", "causal-lm", is_decoder=True, add_cross_attention=True)
        crossing = [read for read in quantized_reads(model) if "cross_attention" in read.name]
        assert [len(read.linears) for read in crossing] == [2, 1, 1] * 2
        assert crossing[0].norm is None
        assert crossing[1].norm is not None


class TestTransforms:
    @pytest.mark.parametrize("family", ENCODERS)
    @pytest.mark.parametrize("recipe", RECIPES)
    def test_neutral_while_nothing_is_rounded(self, family: str, recipe: str) -> None:
        want = outputs(model_of(family))
        model = model_of(family, recipe)
        assert len(smooth(model, batches())) == 8
        set_mode(model, Mode.OFF)
        got = outputs(model)
        assert not all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
        assert noise(got, want) < 1e-10
        with without_transforms(model):
            assert all(torch.equal(a, b) for a, b in zip(outputs(model), want, strict=True))

    @pytest.mark.parametrize("family", ENCODERS)
    @pytest.mark.parametrize("recipe", RECIPES)
    def test_activations_lose_less_than_without(self, family: str, recipe: str) -> None:
        want = outputs(model_of(family))
        plain, smoothed = model_of(family, recipe), model_of(family, recipe)
        smooth(smoothed, batches())
        for model in (plain, smoothed):
            calibrate(model, batches())
            for slot, quantizer in named_slots(model):
                if slot.name == "weight":
                    quantizer.mode = Mode.OFF
        assert noise(outputs(smoothed), want) < noise(outputs(plain), want)

    def test_smoothing_scales_are_those_of_the_formula(self) -> None:
        model = model_of("bert", "onnxruntime")
        seen: list[Tensor] = []
        linear = model.encoder.layers[1].feed_forward.up
        linear.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        float_outputs = outputs(model)
        x = torch.cat([s[b["attention_mask"] != 0] for s, b in zip(seen, batches(), strict=True)])
        smooth(model, batches(), strength=0.7)
        middle = (x.amax(0) + x.amin(0)) / 2
        size, columns = (x - middle).abs().amax(0), linear.weight.abs().amax(0)
        s = size**0.7 / columns**0.3
        transform = linear.input_quantizer.transform
        torch.testing.assert_close(transform.shift, middle)
        torch.testing.assert_close(transform.smoothing_scale, s.log().mean().exp() / s)
        torch.testing.assert_close(
            linear.weight_quantizer.transform.smoothing_scale * transform.smoothing_scale, torch.ones(16)
        )
        assert len(float_outputs) == 3

    def test_the_value_projection_absorbs_the_smoothing_scale_of_the_output_projection(self) -> None:
        model = model_of("bert", "onnxruntime")
        smooth(model, batches())
        attention = model.encoder.layers[0].attention
        assert attention.output.input_quantizer.transform is None
        rows = attention.value.weight_quantizer.transform.row_scale
        torch.testing.assert_close(rows * attention.output.weight_quantizer.transform.smoothing_scale, torch.ones(16))

    def test_depths_that_share_weights_share_smoothing_scales(self) -> None:
        model = model_of("albert", "onnxruntime")
        smooth(model, batches())
        first, second = (layer.feed_forward.up.input_quantizer.transform for layer in model.encoder.layers)
        assert torch.equal(first.smoothing_scale, second.smoothing_scale)
        assert not torch.equal(first.shift, second.shift)

    def test_order_and_size_of_the_batches_do_not_matter(self) -> None:
        one, other = model_of("bert", "linear"), model_of("bert", "linear")
        smooth(one, batches())
        rows = [
            {name: tensor[row : row + 1] for name, tensor in batch.items()}
            for batch in reversed(batches())
            for row in range(4)
        ]
        smooth(other, rows)
        for (name, a), (_, b) in zip(quantizers(one), quantizers(other), strict=True):
            if a.transform is not None:
                for part in ("shift", "smoothing_scale", "row_scale"):
                    x, y = getattr(a.transform, part), getattr(b.transform, part)
                    assert (x is None) == (y is None), name
                    if x is not None:  # kernels differ with the shape by float rounding
                        torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-5)

    def test_slots_that_are_not_quantized_get_no_transform(self) -> None:
        model = model_of("bert", "weight-only-int8")
        assert smooth(model, batches()) == []

    @pytest.mark.parametrize("strength", [-0.1, 1.5, float("nan")])
    def test_strength_out_of_range(self, strength: float) -> None:
        with pytest.raises(CalibrationError, match="must be from 0"):
            smooth(model_of("bert", "linear"), batches(), strength=strength)

    def test_no_data_and_infinite_values(self) -> None:
        model = model_of("bert", "linear")
        with pytest.raises(CalibrationError, match="no data"):
            smooth(model, [])
        with torch.no_grad():
            model.encoder.layers[1].attention.norm.bias[2] = torch.inf
        with pytest.raises(CalibrationError, match=r"layers\.1\.feed_forward\.up saw NaN or infinite"):
            smooth(model, batches())
        assert all(q.transform is None and q.mode is Mode.OFF for _, q in quantizers(model))


class TestRefine:
    @pytest.mark.parametrize("family", ENCODERS)
    def test_mean_outputs_become_those_of_the_float_model(self, family: str) -> None:
        model = model_of(family, "linear")
        means: dict[str, list[Tensor]] = {}

        def watch(name: str, linear: nn.Module) -> None:
            linear.register_forward_hook(lambda _m, _a, out: means.setdefault(name, []).append(out))

        last = model.encoder.layers[1].feed_forward.down
        watch("down", last)
        set_mode(model, Mode.OFF)
        outputs(model)
        calibrate(model, batches())
        refine(model, batches(), rounding="nearest")
        outputs(model)

        def mean(outs: list[Tensor]) -> Tensor:
            kept = [out[batch["attention_mask"] != 0] for out, batch in zip(outs, batches(), strict=True)]
            return torch.cat(kept).mean(0)

        got, want = mean(means["down"][-3:]), mean(means["down"][:3])
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)

    @pytest.mark.parametrize("family", ENCODERS)
    @pytest.mark.parametrize("recipe", RECIPES)
    def test_less_noise_with_each_step(self, family: str, recipe: str) -> None:
        data = batches(12)
        want = outputs(model_of(family), data)
        found = []
        for steps in (Refinement(), EVERYTHING):
            model = model_of(family, recipe)
            calibrate_and_refine(model, lambda: data, steps)
            found.append(noise(outputs(model, data), want))
        assert found[1] < found[0] / 2

    def test_floats_stay_and_integers_change(self) -> None:
        model = model_of("bert", "linear")
        before = {name: parameter.clone() for name, parameter in model.named_parameters()}
        changed = refine_all(model)
        assert len(changed) == 12
        assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
        linear = model.encoder.layers[0].feed_forward.up
        assert linear.weight_quantizer.rounding.dtype == torch.int8
        assert linear.weight_quantizer.rounding.abs().max() >= 1

    @pytest.mark.parametrize("family", ENCODERS)
    def test_no_pair_of_weights_can_overflow(self, family: str) -> None:
        model = model_of(family, "onnxruntime")
        refine_all(model)
        linears = [linear for read in quantized_reads(model) for linear in read.linears]
        for linear in linears:
            quantizer = linear.weight_quantizer
            q = quantizer.quantize(quantizer.prepared(linear.weight))
            assert (q[:, 1:] + q[:, :-1]).abs().max() <= 128

    def test_unknown_rounding_and_no_data(self) -> None:
        model = model_of("bert", "linear")
        calibrate(model, batches())
        with pytest.raises(CalibrationError, match="no rounding 'up'"):
            refine(model, batches(), rounding="up")
        with pytest.raises(CalibrationError, match="no data"):
            refine(model, [])
        assert all(q.mode is Mode.QUANTIZE for _, q in quantizers(model) if q.spec is not None)

    def test_a_model_that_is_not_calibrated(self) -> None:
        with pytest.raises(CalibrationError, match="not calibrated"):
            refine(model_of("bert", "linear"), batches())


def refine_all(model: nn.Module) -> list[str]:
    calibrate(model, batches())
    return refine(model, batches())


class TestFolded:
    @pytest.mark.parametrize("family", ENCODERS)
    @pytest.mark.parametrize("recipe", RECIPES)
    def test_outputs_stay_and_the_model_is_restored(self, family: str, recipe: str) -> None:
        model = model_of(family, recipe)
        calibrate_and_refine(model, batches, EVERYTHING)
        want = outputs(model)
        before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        with folded(model):
            # not to the bit: where a step flips, the difference is that of a step
            assert noise(outputs(model), want) < 1e-3
            for read in quantized_reads(model):
                assert all(linear.weight_quantizer.transform is None for linear in read.linears)
                left = read.linears[0].input_quantizer.transform
                if read.norm is not None:
                    assert left is None or left.shift is None
                    assert (left is None) == (read.add is None)
                elif read.source is not None:
                    assert left is None
        assert all(torch.equal(a, b) for a, b in zip(outputs(model), want, strict=True))
        after = model.state_dict()
        assert list(after) == list(before)
        assert all(torch.equal(after[name], before[name]) for name in before)

    def test_shared_weights_stay_one(self) -> None:
        model = model_of("albert", "onnxruntime")
        calibrate_and_refine(model, batches, EVERYTHING)
        with folded(model):
            first, second = (layer.feed_forward.up for layer in model.encoder.layers)
            assert first.weight is second.weight
            assert first.bias is not second.bias

    def test_decoders_with_cross_attention(self) -> None:
        model = model_of("bert", "linear", "causal-lm", is_decoder=True, add_cross_attention=True)
        memory = torch.randn(4, 7, 16, generator=torch.Generator().manual_seed(1))
        data = [{**batch, "encoder_hidden_states": memory} for batch in batches()]
        calibrate_and_refine(model, lambda: data, EVERYTHING)
        with torch.no_grad():
            want = model(**data[0]).logits
            with folded(model):
                got = model(**data[0]).logits
        assert noise([got], [want]) < 1e-3


class TestOnDisk:
    @pytest.mark.parametrize("family", ENCODERS)
    def test_a_loaded_model_computes_the_same_to_the_bit(self, family: str, tmp_path: Path) -> None:
        model = model_of(family, "tensorrt")
        summary = calibrate_and_refine(model, batches, EVERYTHING)
        assert summary.refinement["transformed"] == 8
        assert summary.refinement["samples"] == 12
        save(model, tmp_path / "c", recipe=load_recipe("tensorrt"), calibration=summary.to_dict())
        for got, want in zip(outputs(load(tmp_path / "c")), outputs(model), strict=True):
            assert torch.equal(got, want)

    def test_another_recipe_keeps_transforms_and_drops_roundings_and_corrections(self) -> None:
        model = model_of("bert", "onnxruntime")
        calibrate_and_refine(model, batches, EVERYTHING)
        before = {slot: quantizer for slot, quantizer in named_slots(model) if quantizer.transform is not None}
        corrected = model.encoder.layers[0].feed_forward.up
        assert corrected.bias_correction is not None
        apply_recipe(model, load_recipe("tensorrt"))
        after = dict(named_slots(model))
        assert all(after[slot].transform is quantizer.transform for slot, quantizer in before.items())
        assert corrected.bias_correction is None
        assert corrected.weight_quantizer.rounding is None

    def test_the_same_recipe_again_changes_nothing(self) -> None:
        model = model_of("bert", "onnxruntime")
        calibrate_and_refine(model, batches, EVERYTHING)
        want = outputs(model)
        apply_recipe(model, load_recipe("onnxruntime"))
        set_mode(model, Mode.QUANTIZE)
        assert all(torch.equal(a, b) for a, b in zip(outputs(model), want, strict=True))

    def test_half_precision_keeps_the_transforms(self) -> None:
        model = model_of("bert", "onnxruntime")
        smooth(model, batches())
        model.half()
        transform = model.encoder.layers[0].feed_forward.up.input_quantizer.transform
        assert transform.smoothing_scale.dtype == torch.float32
        assert model.encoder.layers[0].feed_forward.up.weight.dtype == torch.float16


class TestFloat8:
    """Methods for integers do not apply to float8, and a warning says so."""

    def test_methods_that_do_not_apply_are_warned_about(self) -> None:
        refinement = Refinement(rounding="gptq", clipping="token-wise")
        summary = calibrate_and_refine(model_of("bert", "fp8"), batches(), refinement, method=Entropy())
        said = [line for line in summary.warnings if "float8" in line]
        assert [line.partition(" is for integers")[0] for line in said] == [
            "--calibrator entropy",
            "rounding: gptq",
            "clipping: token-wise",
        ]
        assert "does not change 12 slots in float8 (encoder.layers.0.attention.query.weight, ...)" in said[1]

    def test_methods_apply_to_integers(self) -> None:
        refinement = Refinement(rounding="gptq", clipping="token-wise")
        summary = calibrate_and_refine(model_of("bert", "linear"), batches(), refinement, method=Entropy())
        assert not any("float8" in line for line in summary.warnings)
