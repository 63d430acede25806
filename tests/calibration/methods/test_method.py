"""Ranges compared with numpy on the very values."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from torch import Tensor

from calibration import Auto, Entropy, Max, Mse, Percentile, TokenMask, method_named
from calibration.methods.noise import noise_ratio, share_outside
from calibration.settings import CALIBRATORS
from qdq.errors import CalibrationError
from qdq.quantization.quantizer import Quantizer
from qdq.quantization.spec import QuantSpec

if TYPE_CHECKING:
    from calibration.methods.method import Method
    from calibration.statistics.collectors import Collector
    from qdq.quantization.quantizer import Range


def collected(method: Method, *parts: Tensor) -> Collector:
    collector = method.collector(TokenMask())
    for part in parts:
        collector.update(part)
    return collector


def range_of(method: Method, *parts: Tensor) -> Range:
    return method.range(collected(method, *parts))


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


ALL = (Max(), Percentile(99.0), Mse(), Entropy(), Auto())
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
    collector = collected(method, *x.split(777))
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
@pytest.mark.parametrize("method", ALL, ids=CALIBRATORS)
def test_constant_tensor_has_a_range_of_one_point(method: Method, value: float) -> None:
    got = range_of(method, torch.full((50,), value))
    assert float(got.lower) == float(got.upper) == np.float32(value)
    assert float(got.amax) == pytest.approx(abs(value), rel=1e-3)
    assert float(got.amax) <= abs(np.float32(value))


@pytest.mark.parametrize("method", ALL, ids=CALIBRATORS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf], ids=str)
def test_broken_values_give_a_broken_range(method: Method, bad: float) -> None:
    got = range_of(method, torch.randn(50), torch.tensor([bad, 1.0]), torch.randn(50))
    assert not bool(torch.isfinite(torch.stack([got.lower, got.upper, got.amax])).all())


def test_ranges_are_float32_scalars() -> None:
    for method in ALL:
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
    assert [method_named(name).name for name in CALIBRATORS] == list(CALIBRATORS)
    with pytest.raises(CalibrationError, match="no calibrator 'kl': it must be one of max, percentile, mse"):
        method_named("kl")


def test_methods_describe_themselves() -> None:
    assert Max().to_dict() == {"name": "max"}
    assert Percentile(99.5).to_dict() == {"name": "percentile", "percentile": 99.5}


# --- ranges with little noise ---

SPECS = {
    "int8": QuantSpec(),
    "int8 narrow": QuantSpec(narrow_range=True),
    "uint8 affine": QuantSpec(signed=False, symmetric=False),
    "int4": QuantSpec(bits=4),
    "float8": QuantSpec(format="float8e4m3fn"),
    "uint8 from zero": QuantSpec(signed=False, arithmetic="pytorch-quantization"),
}


def measured(x: Tensor, range_: Range, spec: QuantSpec) -> float:
    """The noise of the values themselves, by the quantizer that will run."""
    quantizer = Quantizer(spec)
    quantizer.set_range(range_)
    scale, zero = quantizer.grid(x)
    y = (quantizer.quantize(x) - zero) * scale
    return float((y.double() - x.double()).square().sum() / x.double().square().sum())


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("name", NAMES)
def test_estimated_noise_is_that_of_the_values(name: str, spec: QuantSpec) -> None:
    x = values(name)
    x = x.abs() if spec.arithmetic != "onnx" else x
    collector = collected(Mse(), x)
    for method in (Max(), Percentile(99.0), Mse(), Entropy()):
        range_ = method.range(collector, spec)
        # A bin is known by its middle; with 8 bits a step is 4 to 16 of them.
        assert noise_ratio(collector, range_, spec) == pytest.approx(measured(x, range_, spec), rel=0.15), method


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("name", NAMES)
def test_mse_is_about_the_best_of_all_ranges(name: str, spec: QuantSpec) -> None:
    x = values(name)
    x = x.abs() if spec.arithmetic != "onnx" else x
    got = measured(x, Mse().range(collected(Mse(), x), spec), spec)
    top = range_of(Max(), x)
    x = x.abs() if spec.symmetric else x  # the rule looks at magnitudes, for which there is no -128
    shares = np.linspace(0.13, 1, 80).tolist()
    best = min(measured(x, type(top)(top.lower * t, top.upper * t, top.amax * t), spec) for t in shares)
    assert got <= best * 1.03


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
@pytest.mark.parametrize("name", NAMES)
def test_auto_is_no_worse_than_any_other(name: str, spec: QuantSpec) -> None:
    x = values(name)
    x = x.abs() if spec.arithmetic != "onnx" else x
    collector = collected(Auto(), x)
    chosen, why = Auto().choose(collector, spec)
    noise = {m.name: noise_ratio(collector, m.range(collector, spec), spec) for m in (Max(), Entropy(), Mse())}
    assert noise_ratio(collector, chosen, spec) <= min(noise.values()) * 1.02
    assert why["method"] in why["sqnr_db"]
    assert why["sqnr_db"]["mse"] == pytest.approx(-10 * math.log10(noise["mse"]), abs=0.01)


def test_auto_clips_nothing_where_nothing_is_gained() -> None:
    _, why = Auto().choose(collected(Auto(), torch.rand(50_000) * 2 - 1))
    assert why["method"] == "max"
    _, why = Auto().choose(
        collected(Auto(), torch.cat([torch.randn(50_000), torch.tensor([200.0])])), QuantSpec(bits=4)
    )
    assert why["method"] != "max"


@pytest.mark.parametrize("name", NAMES)
def test_share_outside_is_counted(name: str) -> None:
    x = values(name)
    collector = collected(Percentile(), x)
    range_ = Percentile(98.0).range(collector)
    magnitudes = float((x.abs() > range_.amax).double().mean())
    assert share_outside(collector, range_, symmetric=True) == pytest.approx(magnitudes, abs=2e-3)
    beyond = float(((x < range_.lower) | (x > range_.upper)).double().mean())
    assert share_outside(collector, range_, symmetric=False) == pytest.approx(beyond, abs=2e-3)
    for symmetric in (True, False):
        assert share_outside(collector, Max().range(collector), symmetric=symmetric) == 0.0


@pytest.mark.parametrize("method", ALL, ids=CALIBRATORS)
@pytest.mark.parametrize("name", NAMES)
def test_ranges_stay_within_what_was_seen(name: str, method: Method) -> None:
    x = values(name)
    for spec in SPECS.values():
        got = method.range(collected(method, x), spec)
        assert x.min() <= got.lower <= got.upper <= x.max()
        assert 0 < got.amax <= x.abs().max()
