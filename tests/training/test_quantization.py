"""Quantizers in training: phases, ranges that follow, learned scales, what becomes of a refined model."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch

import calibration
from qdq.quantization.modules import QuantLinear
from qdq.quantization.modules.weight import weight_range
from qdq.quantization.quantizer import Mode, quantizers
from qdq.quantization.wrap import named_slots
from qdq.recipes.apply import quantize
from qdq.recipes.recipe import load_recipe
from qdq.training.loop import finetune
from qdq.training.optimizer import parameter_groups
from qdq.training.quantization import QuantizerSchedule, phase_at, ready_for_training, update_ranges
from qdq.training.settings import TrainingSettings

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qdq.quantization.quantizer import Quantizer
    from tests.training.conftest import ToyTask


def activations(model: nn.Module) -> list[Quantizer]:
    return [q for s, q in named_slots(model) if q.spec is not None and s.name != "weight"]


def weights(model: nn.Module) -> list[tuple[Quantizer, Tensor]]:
    return [
        (q, model.get_submodule(s.module).weight)
        for s, q in named_slots(model)
        if q.spec is not None and s.name == "weight"
    ]


def test_float_first_then_activations_then_weights(toy: ToyTask) -> None:
    settings = TrainingSettings(activations_from=0.25, weights_from=0.5, freeze_ranges=0.75)
    model = toy.quantized_model("qdqbert")
    schedule = QuantizerSchedule(model, 8, settings)
    seen = []
    for step in range(8):
        schedule.before_step(step)
        modes = {q.mode for q in activations(model)}, {q.mode for q, _ in weights(model)}
        assert all(len(mode) == 1 for mode in modes)
        seen.append(tuple(mode.pop() is Mode.QUANTIZE for mode in modes))
    assert seen == [(False, False)] * 2 + [(True, False)] * 2 + [(True, True)] * 4
    assert [phase_at(step, 8, settings).updates_ranges for step in range(8)] == [True] * 6 + [False] * 2
    schedule.close()
    assert {q.mode for _, q in quantizers(model) if q.spec is not None} == {Mode.QUANTIZE}


def test_the_last_step_quantizes_everything() -> None:
    assert phase_at(4, 5, TrainingSettings(activations_from=1, weights_from=1)).is_whole


def test_scales_of_weights_follow_until_they_are_frozen(toy: ToyTask) -> None:
    model = toy.quantized_model()
    finetune(model, toy.batches(), epochs=1, lr=1e-2, freeze_ranges=1.0)
    for quantizer, weight in weights(model):
        want = weight_range(weight.detach(), quantizer.spec).amax / 127
        torch.testing.assert_close(quantizer.scale, want, rtol=1e-6, atol=0)
    frozen = toy.quantized_model()
    before = [q.scale.clone() for q, _ in weights(frozen)]
    finetune(frozen, toy.batches(), epochs=1, lr=1e-2, freeze_ranges=0.0)
    assert all(torch.equal(q.scale, old) for (q, _), old in zip(weights(frozen), before, strict=True))


def test_fixed_ranges_of_activations_stay(toy: ToyTask) -> None:
    model = toy.quantized_model()
    before = [q.scale.clone() for q in activations(model)]
    finetune(model, toy.batches(), epochs=1, lr=1e-2)
    assert all(torch.equal(q.scale, old) for q, old in zip(activations(model), before, strict=True))


def test_moving_ranges_are_averages_of_what_tokens_say(toy: ToyTask) -> None:
    model = toy.quantized_model(**toy.NO_DROPOUT)
    quantizer = model.encoder.layers[0].attention.query.input_quantizer
    amax, momentum, batches = float(quantizer.range.amax), 0.25, toy.batches(3)
    with torch.no_grad():
        hidden = [model.embeddings(batch["input_ids"])[batch["attention_mask"] != 0] for batch in batches]
    seen = [float(x.abs().max()) for x in hidden]
    schedule = QuantizerSchedule(model, 10, TrainingSettings(ranges="moving", momentum=momentum))
    schedule.before_step(0)
    model.train()
    want = amax
    for batch, largest in zip(batches, seen, strict=True):
        with torch.no_grad():
            model(**batch)
        want += momentum * (largest - want)
    assert float(quantizer.range.amax) == pytest.approx(want, rel=1e-5)
    assert float(quantizer.scale) == pytest.approx(want / 127, rel=1e-5)
    schedule.close()
    with torch.no_grad():
        model.eval()(**batches[0])
    assert float(quantizer.range.amax) == pytest.approx(want, rel=1e-5), "no hook is left"


def test_moving_ranges_count_recomputed_layers_once(toy: ToyTask) -> None:
    models = [toy.quantized_model(), toy.quantized_model()]
    for model, again in zip(models, (True, False), strict=True):
        torch.manual_seed(3)
        finetune(
            model, toy.batches(2), epochs=1, lr=1e-3, ranges="moving", freeze_ranges=1.0, gradient_checkpointing=again
        )
    for one, other in zip(activations(models[0]), activations(models[1]), strict=True):
        torch.testing.assert_close(one.range.amax, other.range.amax, rtol=1e-5, atol=1e-6)


def test_learned_scales_have_rates_of_their_own_size(toy: ToyTask) -> None:
    model = toy.quantized_model()
    notes = ready_for_training(model, learned=True)
    assert notes == [f"{len([q for _, q in quantizers(model) if q.spec])} scales are trained"]
    found = parameter_groups(model, TrainingSettings(scale_lr=1e-3))
    scaled = [g for g in found if g.is_scales]
    assert scaled
    for group in scaled:
        for name in group.names:
            size = float(model.get_parameter(name).detach().abs().mean())
            assert group.lr / size == pytest.approx(1e-3, rel=0.42)
            assert group.weight_decay == 0
    assert not any("scale" in name for g in found if not g.is_scales for name in g.names)


def test_learned_scales_move_and_freeze(toy: ToyTask) -> None:
    for share, moves in ((1.0, True), (0.0, False)):
        model = toy.quantized_model()
        ready_for_training(model, learned=True)
        before = [q.scale.detach().clone() for _, q in quantizers(model) if q.spec is not None]
        finetune(model, toy.batches(), epochs=1, lr=1e-3, freeze_ranges=share, scale_lr=1e-2)
        after = [q.scale.detach() for _, q in quantizers(model) if q.spec is not None]
        assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True)) is not moves


def test_ranges_say_what_the_scales_came_to(toy: ToyTask) -> None:
    model = toy.quantized_model("onnxruntime")
    ready_for_training(model, learned=True)
    finetune(model, toy.batches(), epochs=1, lr=1e-3, scale_lr=1e-1)
    update_ranges(model)
    for quantizer in activations(model):
        scale, zero = (part.detach().clone() for part in quantizer.grid(quantizer.scale))
        quantizer.configure(replace(quantizer.spec, learned_scale=False))
        quantizer.set_range(quantizer.range)
        torch.testing.assert_close(quantizer.scale, scale, rtol=1e-5, atol=0)
        assert torch.equal(quantizer.zero_point, zero)


def test_slots_in_float_lose_the_ranges_of_old_weights(toy: ToyTask) -> None:
    model = toy.quantized_model()
    idle = [q for s, q in named_slots(model) if q.spec is None and s.name != "weight"]
    assert idle
    assert all(q.range is not None for q in idle)
    finetune(model, toy.batches(), evaluate=toy.accuracy, epochs=1, lr=1e-3)
    assert all(q.range is None for q in idle)
    assert all(q.range is not None for q in activations(model))


def test_a_refined_model_becomes_trainable(toy: ToyTask) -> None:
    recipe = load_recipe("linear")
    model = toy.model().eval()
    quantize(model, recipe)
    batches = [{k: v for k, v in b.items() if k != "labels"} for b in toy.batches()]
    calibration.calibrate_and_refine(model, batches, recipe.refinement)
    linears = [m for m in model.modules() if isinstance(m, QuantLinear) and m.bias_correction is not None]
    with torch.no_grad():
        for linear in linears:  # as it is without the chosen rounding
            linear.weight_quantizer.rounding = None
        want = model(**batches[0]).logits
    notes = ready_for_training(model, learned=False)
    assert notes[-1] == f"{len(linears)} bias corrections are added to the biases"
    with torch.no_grad():
        torch.testing.assert_close(model(**batches[0]).logits, want, rtol=1e-4, atol=1e-5)
    assert all(q.rounding is None for _, q in quantizers(model))
    assert any(q.transform is not None for _, q in quantizers(model)), "transforms stay"
    result = finetune(model, toy.batches(), evaluate=toy.accuracy, epochs=12, lr=1e-2)
    assert result.metric is not None
    assert result.metric > 0.85
