"""Ranges compared with numpy on the very values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from calibration import Max, Percentile, TokenMask, method_named
from qdq.errors import CalibrationError

if TYPE_CHECKING:
    from calibration.methods import Method
    from qdq.quantizer import Range


def held(method: Method, *parts: Tensor) -> Any:
    collector = method.collector(TokenMask())
    for part in parts:
        collector.update(part)
    return collector


def range_of(method: Method, *parts: Tensor) -> Range:
    return method.range(held(method, *parts))


def values(name: str) -> Tensor:
    generator = torch.Generator().manual_seed(11)
    normal = torch.randn(20000, generator=generator)
    return {
        "normal": normal * 0.7 + 0.1,
        "gelu": torch.nn.functional.gelu(normal * 2),
        "weights": torch.softmax(normal.reshape(200, 100) * 2, dim=-1).flatten(),
        "negative": -normal.abs() - 3,
        "heavy": normal / normal.flip(0).abs().clamp(min=0.01),
        "small": normal * 1e-12,
    }[name]


NAMES = ("normal", "gelu", "weights", "negative", "heavy", "small")


@pytest.mark.parametrize("name", NAMES)
def test_max_is_numpy_min_and_max(name: str) -> None:
    x = values(name)
    got = range_of(Max(), *x.split(777))
    numbers = x.numpy()
    assert (float(got.lower), float(got.upper)) == (numbers.min(), numbers.max())
    assert float(got.amax) == np.abs(numbers).max()


@pytest.mark.parametrize("percentile", [99.99, 99.9, 99.0, 90.0, 51.0])
@pytest.mark.parametrize("name", NAMES)
def test_percentile_is_numpy_percentile_to_a_bin(name: str, percentile: float) -> None:
    x = values(name)
    method = Percentile(percentile)
    collector = held(method, *x.split(777))
    got = method.range(collector)
    tail = (100 - percentile) / 2
    numbers = x.double().numpy()
    for found, sample, q in (
        (got.lower, numbers, tail),
        (got.upper, numbers, 100 - tail),
        (got.amax, np.abs(numbers), percentile),
    ):
        # A quantile lies between two samples, and each is known to a bin.
        low, high = (np.percentile(sample, q, method=method) for method in ("lower", "higher"))
        assert low - collector.width <= float(found) <= high + collector.width


@pytest.mark.parametrize("name", NAMES)
def test_hundred_percent_is_max(name: str) -> None:
    x = values(name)
    got, want = range_of(Percentile(100), x), range_of(Max(), x)
    assert (got.lower, got.upper, got.amax) == (want.lower, want.upper, want.amax)


def test_one_hot_outlier_is_clipped_and_max_keeps_it() -> None:
    x = torch.randn(100_000).clamp(-4, 4)
    x[500] = 900.0
    assert float(range_of(Max(), x).amax) == 900
    clipped = range_of(Percentile(99.9), x)
    assert 3 < float(clipped.amax) < 4.5
    assert float(clipped.upper) < 4.5


def test_percentile_of_magnitudes_is_not_that_of_one_side() -> None:
    x = torch.cat([torch.linspace(0, 1, 9000), -torch.linspace(0, 10, 1000)])
    got = range_of(Percentile(99.0), x)
    assert float(got.amax) == pytest.approx(np.percentile(np.abs(x.numpy()), 99), abs=0.01)


@pytest.mark.parametrize("value", [0.0, 1.0, -1.0, 0.7, -3e-9, 2.5e30])
@pytest.mark.parametrize("method", [Max(), Percentile(99.0)], ids=["max", "percentile"])
def test_constant_tensor_has_a_range_of_one_point(method: Method, value: float) -> None:
    got = range_of(method, torch.full((50,), value))
    assert float(got.lower) == float(got.upper) == np.float32(value)
    assert float(got.amax) == pytest.approx(abs(value), rel=1e-3)
    assert float(got.amax) <= abs(np.float32(value))


@pytest.mark.parametrize("method", [Max(), Percentile(99.0)], ids=["max", "percentile"])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_broken_values_give_a_broken_range(method: Method, bad: float) -> None:
    got = range_of(method, torch.randn(50), torch.tensor([bad, 1.0]), torch.randn(50))
    assert not bool(torch.isfinite(torch.stack([got.lower, got.upper, got.amax])).all())


def test_ranges_are_float32_scalars() -> None:
    for method in (Max(), Percentile(99.0)):
        got = range_of(method, torch.randn(50).bfloat16())
        for bound in (got.lower, got.upper, got.amax):
            assert bound.dtype == torch.float32
            assert bound.shape == ()


@pytest.mark.parametrize("percentile", [50, 0, -1, 100.01, math.nan])
def test_impossible_percentiles_are_refused(percentile: float) -> None:
    with pytest.raises(CalibrationError, match="above 50 and at most 100"):
        Percentile(percentile)


def test_methods_by_name() -> None:
    assert method_named("max") == Max()
    assert method_named("percentile") == Percentile()
    assert method_named("percentile", percentile=99.5) == Percentile(99.5)
    with pytest.raises(CalibrationError, match="no calibrator 'mse': it must be one of max, percentile"):
        method_named("mse")


def test_methods_describe_themselves() -> None:
    assert Max().to_dict() == {"name": "max"}
    assert Percentile(99.5).to_dict() == {"name": "percentile", "percentile": 99.5}
