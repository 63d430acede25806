"""Learned scales in whole models, against LSQ (Esser et al. 2020, arXiv 1902.08153) written out in plain torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from qdq.quantization.spec import PerAxis, QuantSpec

if TYPE_CHECKING:
    from tests.quantization.conftest import QuantizedModels

LEARNED = QuantSpec(learned_scale=True)
AFFINE = QuantSpec(learned_scale=True, signed=False, symmetric=False)
CHANNELS = QuantSpec(learned_scale=True, granularity=PerAxis(0))
FOUR_BITS = QuantSpec(bits=4, learned_scale=True, signed=False, symmetric=False)


def lsq(v: Tensor, s: Tensor, zero: Tensor, spec: QuantSpec, count: int, upstream: Tensor) -> tuple[Tensor, Tensor]:
    """Gradients of a value (equation 5) and of its scale (equation 3, times the factor of section 2.2).

    -Q_N and Q_P are the lowest and the highest number of steps from zero. The factor is 1 / sqrt(count * Q_P), with the
    highest integer for Q_P.
    """
    top = 2 ** (spec.bits - spec.signed) - 1
    low, high = (-(top + 1) if spec.signed else 0) - zero, top - zero
    steps = v / s
    inside = (low < steps) & (steps < high)
    slope = torch.where(inside, steps.round() - steps, torch.where(steps <= low, low, high).float())
    return upstream * inside, (upstream * slope).double().sum_to_size(s.shape).float() * (count * top) ** -0.5


@pytest.mark.parametrize("shrink", [1.0, 0.6], ids=["as calibrated", "saturating"])
@pytest.mark.parametrize("spec", [LEARNED, AFFINE], ids=str)
def test_gradient_of_an_activation_scale(spec: QuantSpec, shrink: float, quantized_models: QuantizedModels) -> None:
    model = quantized_models.specified(spec, None)
    with torch.no_grad(), quantized_models.watched(model) as passes:
        model(**quantized_models.inputs())
    saturated = 0
    for name, quantizer, x, _ in passes[:14]:
        quantizer.readers = 1
        with torch.no_grad():
            quantizer.scale.mul_(shrink)
        v, upstream = x.clone().requires_grad_(), torch.randn_like(x)
        quantizer.scale.grad = None
        quantizer(v).backward(upstream)
        zero = quantizer.zero_point
        to_value, to_scale = lsq(x, quantizer.scale.detach(), zero, spec, x[0].numel(), upstream)
        torch.testing.assert_close(quantizer.scale.grad, to_scale, rtol=1e-4, atol=1e-5, msg=name)
        assert v.grad is not None
        assert torch.equal(v.grad, to_value), name
        saturated += int((to_value == 0).sum())
    assert saturated > 0


@pytest.mark.parametrize("shrink", [1.0, 0.6], ids=["as calibrated", "saturating"])
@pytest.mark.parametrize("spec", [LEARNED, CHANNELS, FOUR_BITS], ids=str)
def test_gradient_of_a_weight_scale(spec: QuantSpec, shrink: float, quantized_models: QuantizedModels) -> None:
    model = quantized_models.specified(None, spec)
    for linear in (model.encoder.layers[0].attention.value, model.encoder.layers[1].feed_forward.down):
        quantizer, weight = linear.weight_quantizer, linear.weight
        with torch.no_grad():
            quantizer.scale.mul_(shrink)
        upstream = torch.randn_like(weight)
        quantizer(weight).backward(upstream)
        scale, zero = (
            part if spec.axis is None else part[:, None] for part in (quantizer.scale.detach(), quantizer.zero_point)
        )
        count = weight.numel() // scale.numel()
        to_value, to_scale = lsq(weight.detach(), scale, zero, spec, count, upstream)
        torch.testing.assert_close(quantizer.scale.grad, to_scale.view_as(quantizer.scale), rtol=1e-4, atol=1e-5)
        assert weight.grad is not None
        assert torch.equal(weight.grad, to_value)


def test_learned_scales_are_parameters_and_move_in_training(quantized_models: QuantizedModels) -> None:
    model = quantized_models.specified(LEARNED, CHANNELS, "bert", "masked-lm")
    inputs = quantized_models.inputs("bert", "masked-lm")
    scales = {name: p for name, p in model.named_parameters() if name.endswith("_quantizer.scale")}
    assert len(scales) == 2 * 18
    before = {name: p.detach().clone() for name, p in scales.items()}
    optimizer = torch.optim.SGD(scales.values(), lr=1e-3)
    model(**inputs).loss.backward()
    optimizer.step()
    assert all(not torch.equal(p, before[name]) for name, p in scales.items())
