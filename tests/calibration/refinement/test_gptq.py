"""Rounding by columns, against rounding to nearest and against every possible rounding."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor

from calibration.refinement.gptq import PAIR_LIMIT, round_by_columns
from qdq.quantization.modules.weight import set_weight_scale
from qdq.quantization.quantizer import Mode, Quantizer
from qdq.quantization.spec import PerAxis, PerGroup, PerTensor, QuantSpec

SPECS = [
    pytest.param(QuantSpec(granularity=PerAxis(0)), id="int8"),
    pytest.param(QuantSpec(granularity=PerAxis(0), overflow_safe=True), id="overflow-safe"),
    pytest.param(QuantSpec(granularity=PerTensor(), narrow_range=True), id="per-tensor"),
    pytest.param(QuantSpec(bits=4, granularity=PerGroup(8), symmetric=False), id="int4-groups-affine"),
    pytest.param(QuantSpec(bits=4, signed=False, granularity=PerAxis(0)), id="uint4"),
]


def correlated_inputs(tokens: int, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(channels, channels, generator=generator)
    return torch.randn(tokens, channels, generator=generator) @ mix


def quantized(weight: Tensor, spec: QuantSpec) -> Quantizer:
    quantizer = Quantizer(spec, shape=spec.scale_shape(weight.shape))
    set_weight_scale(quantizer, weight)
    return quantizer


def rounded(weight: Tensor, x: Tensor, spec: QuantSpec, damping: float = 0.01) -> tuple[Tensor, Tensor]:
    """Return the integers, and the values that they stand for."""
    quantizer = quantized(weight, spec)
    hessian = x.T @ x / len(x)
    q = round_by_columns(weight, hessian, spec, quantizer.scale, quantizer.zero_point, damping=damping)
    quantizer.rounding = (q - quantizer.quantize(weight)).to(torch.int8)
    quantizer.mode = Mode.QUANTIZE
    return q, quantizer(weight)


@pytest.mark.parametrize("spec", SPECS)
def test_outputs_are_closer_than_with_the_nearest(spec: QuantSpec) -> None:
    weight = torch.randn(12, 32)
    x = correlated_inputs(400, 32)
    q, values = rounded(weight, x, spec)
    quantizer = quantized(weight, spec)
    quantizer.mode = Mode.QUANTIZE
    nearest = quantizer(weight)
    got, plain = ((x @ (w - weight).T).square().mean() for w in (values, nearest))
    assert got < 0.8 * plain
    assert q.min() >= spec.qmin
    assert q.max() <= spec.qmax
    assert torch.equal(q, q.round())


def test_inputs_that_do_not_correlate_change_nothing() -> None:
    spec = QuantSpec(granularity=PerAxis(0))
    weight = torch.randn(6, 10)
    quantizer = quantized(weight, spec)
    q = round_by_columns(weight, torch.eye(10), spec, quantizer.scale, quantizer.zero_point, damping=0.1)
    assert torch.equal(q, quantizer.quantize(weight))


def test_close_to_the_best_of_all_roundings() -> None:
    spec = QuantSpec(bits=4, granularity=PerAxis(0))
    weight, x = torch.randn(1, 8), correlated_inputs(200, 8)
    quantizer = quantized(weight, spec)
    floor = (weight / quantizer.scale[:, None]).floor()
    choices = torch.tensor(list(product((0.0, 1.0), repeat=8)))
    candidates = (floor + choices).clamp(spec.qmin, spec.qmax) * quantizer.scale
    errors = (x @ (candidates - weight).T).square().mean(0)
    _, values = rounded(weight, x, spec, damping=1e-4)
    got = (x @ (values - weight).T).square().mean()
    nearest = (x @ (quantizer.quantize(weight) * quantizer.scale - weight).T).square().mean()
    assert got < errors.median() / 4
    assert got <= nearest


def test_pairs_of_neighbours_stay_below_the_limit() -> None:
    spec = QuantSpec(granularity=PerAxis(0), overflow_safe=True)
    weight = torch.rand(64, 48) + 0.5  # all of one sign: every pair is at the limit
    q, _ = rounded(weight, correlated_inputs(300, 48), spec)
    pairs = (q[:, 1:] + q[:, :-1]).abs()
    assert pairs.max() <= PAIR_LIMIT
    assert pairs.max() >= PAIR_LIMIT - 2


def test_channels_that_are_always_zero() -> None:
    spec = QuantSpec(granularity=PerAxis(0))
    weight = torch.randn(4, 6)
    quantizer = quantized(weight, spec)
    nothing = torch.zeros(6, 6)
    q = round_by_columns(weight, nothing, spec, quantizer.scale, quantizer.zero_point, damping=0.1)
    assert torch.equal(q, quantizer.quantize(weight))
