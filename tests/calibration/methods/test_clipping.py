"""The rules, on histograms of many kinds, against pytorch-quantization itself and against loops over the definition."""

from __future__ import annotations

import logging
from contextlib import suppress
from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np
import pytest

from calibration.methods.clipping import entropy_amax, mse_amax, percentile_amax

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

# The toolkit puts a handler on the root logger, which would swallow what the tests of commands look for.
_HANDLERS = list(logging.getLogger().handlers)
with suppress(ImportError):
    import_module("pytorch_quantization")
logging.getLogger().handlers[:] = _HANDLERS


@pytest.fixture(scope="module")
def upstream() -> ModuleType:
    return pytest.importorskip("pytorch_quantization.calib.histogram")


def samples(name: str) -> np.ndarray:
    generator = np.random.default_rng(3)
    normal = generator.standard_normal(30_000)
    return {
        "normal": normal,
        "uniform": generator.random(30_000),
        "relu": np.maximum(normal, 0),
        "heavy": generator.standard_t(2, 30_000),
        "laplace": generator.laplace(size=30_000),
        "outlier": np.append(normal, 60.0),
        "softmax": np.exp(3 * normal) / np.exp(3 * normal).sum(),
        "few": normal[:40],
        "steps": np.round(normal * 4) / 4,
        "saturated": np.clip(normal, -1.5, 1.5),
    }[name]


NAMES = ("normal", "uniform", "relu", "heavy", "laplace", "outlier", "softmax", "few", "steps", "saturated")


def histogram(name: str, bins: int = 2048, *, reach: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Counts and edges of magnitudes; with ``reach`` above 1 the last bins are empty."""
    magnitudes = np.abs(samples(name))
    counts, edges = np.histogram(magnitudes, bins=bins, range=(0, magnitudes.max() * reach))
    return counts.astype(np.int64), edges


def error_of(counts: np.ndarray, middles: np.ndarray, amax: float, bound: int) -> float:
    scale = bound / amax
    total = 0.0
    for middle, count in zip(middles.tolist(), counts.tolist(), strict=True):
        quantized = min(round(middle * scale), bound) / scale
        total += count * (quantized - middle) ** 2
    return total / len(counts)


@pytest.mark.parametrize("percentile", [99.0, 99.9, 99.99, 99.999, 100.0])
@pytest.mark.parametrize("name", NAMES)
def test_percentile_is_upstreams(name: str, percentile: float, upstream: ModuleType) -> None:
    counts, edges = histogram(name, reach=1.3)
    want = float(upstream._compute_amax_percentile(counts.copy(), edges, percentile))
    assert np.float32(percentile_amax(counts, edges, percentile)) == np.float32(want)


@pytest.mark.parametrize(("bits", "unsigned"), [(8, False), (8, True), (4, False), (2, False)])
@pytest.mark.parametrize("name", NAMES)
def test_entropy_is_upstreams(name: str, bits: int, unsigned: bool, upstream: ModuleType) -> None:
    counts, edges = histogram(name, 330, reach=1.2)
    want = float(upstream._compute_amax_entropy(counts.copy(), edges, bits, unsigned))
    before = counts.copy()
    assert np.float32(entropy_amax(counts, edges, bits=bits, unsigned=unsigned)) == np.float32(want)
    np.testing.assert_array_equal(counts, before)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if name != "steps"])
def test_entropy_is_upstreams_on_all_bins(name: str, upstream: ModuleType) -> None:
    counts, edges = histogram(name)
    want = float(upstream._compute_amax_entropy(counts.copy(), edges, 8, False))
    assert np.float32(entropy_amax(counts, edges)) == np.float32(want)


def test_a_cut_that_leaves_nothing_is_never_chosen(upstream: ModuleType) -> None:
    """Upstream divides zero by zero there, and takes the NaN for the least."""
    counts, edges = histogram("steps")
    assert not counts[1:128].any()
    with np.errstate(invalid="ignore"):
        assert float(upstream._compute_amax_entropy(counts.copy(), edges, 8, False, stride=100)) == edges[128]
    assert entropy_amax(counts, edges) == edges[-1]


@pytest.mark.parametrize(("bits", "unsigned"), [(8, False), (8, True), (4, False), (2, False)])
@pytest.mark.parametrize("name", NAMES)
def test_mse_is_the_published_rule(name: str, bits: int, unsigned: bool) -> None:
    counts, edges = histogram(name, 300, reach=1.2)
    middles, bound = (edges[1:] + edges[:-1]) / 2, 2 ** (bits - 1 + unsigned) - 1
    errors = [error_of(counts, middles, middles[cut], bound) for cut in range(128, len(middles))]
    assert mse_amax(counts, edges, bits=bits, unsigned=unsigned) == middles[128 + int(np.argmin(errors))]


@pytest.mark.parametrize("name", NAMES)
def test_mse_on_all_bins_is_no_worse_than_any_cut(name: str) -> None:
    counts, edges = histogram(name)
    middles = (edges[1:] + edges[:-1]) / 2
    got = mse_amax(counts, edges)
    errors = [error_of(counts, middles, middle, 127) for middle in middles[128::97]]
    assert got in middles
    assert error_of(counts, middles, got, 127) <= min(errors) * (1 + 1e-12)


@pytest.mark.parametrize("rule", [entropy_amax, mse_amax])
def test_width_of_bins_only_scales(rule: Callable[..., float]) -> None:
    counts, edges = histogram("laplace")
    assert rule(counts, edges * 2.0**-20) == rule(counts, edges) * 2.0**-20


@pytest.mark.parametrize("rule", [entropy_amax, mse_amax])
def test_few_bins_give_their_end(rule: Callable[..., float]) -> None:
    counts, edges = np.array([3, 2, 1]), np.arange(4.0)
    assert 2.5 <= rule(counts, edges) <= 3.0


@pytest.mark.parametrize("rule", [entropy_amax, mse_amax, lambda c, e: percentile_amax(c, e, 99.0)])
def test_what_is_no_histogram_is_refused(rule: Callable[..., float]) -> None:
    with pytest.raises(ValueError, match="without counts"):
        rule(np.zeros(300, dtype=np.int64), np.arange(301.0))
    with pytest.raises(ValueError, match=r"must be \(n,\) and \(n \+ 1,\)"):
        rule(np.ones(300, dtype=np.int64), np.arange(300.0))
