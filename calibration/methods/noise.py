"""The quantization noise of a range: the error of quantizing the values in a slot's histogram."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qdq.quantization import functional
from qdq.quantization.spec import QuantSpec

if TYPE_CHECKING:
    from calibration.statistics.collectors import HistogramCollector
    from qdq.quantization.quantizer import Range

__all__ = ["decibels", "least_noise_amax", "least_noise_bounds", "noise_ratio", "share_outside"]

_SPEC = QuantSpec()  # used for slots that stay float
_TOLERANCE = 1 + 1e-9  # a smaller range must be better by more than rounding errors


def noise_ratio(collector: HistogramCollector, range_: Range, spec: QuantSpec | None = None) -> float:
    """Return the noise power over the signal power: mean ``(q(x) - x)**2`` over mean ``x**2``.

    Each value counts as the middle of its bin.

    Args:
        collector: A collector that has seen values other than zero.
        range_: The range to measure.
        spec: How to quantize; None for symmetric int8.
    """
    spec = spec or _SPEC
    lower, upper = range_.bounds(symmetric=spec.symmetric)
    values, counts = _filled_bins(collector)
    signal = float((counts * values.square()).sum())
    noise = float(_noise(values, counts, lower[None].double(), upper[None].double(), spec))
    return noise / signal if signal else 0.0


def least_noise_bounds(collector: HistogramCollector, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Return the ends of the affine range with the least noise.

    A grid search moves both ends inwards together, then each of them alone.

    Args:
        collector: A collector that has seen values other than zero, all finite.
        spec: The bits and the sign of the integers. The range is affine, whatever the spec says.
    """
    spec = QuantSpec(bits=spec.bits, signed=spec.signed, symmetric=False)
    values, counts = _filled_bins(collector)
    lower, upper = collector.lower.double(), collector.upper.double()
    # Both ends together in steps of 1/128, then each of them alone around the best.
    whole = torch.linspace(1, 1 / 16, 121, dtype=torch.float64)
    near = torch.linspace(1.25, 0.5, 61, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    for below, above in ((whole, whole), (one, near), (near, one)):
        lowers = (lower * below).clamp(min=float(collector.lower)).expand(max(len(below), len(above)))
        uppers = (upper * above).clamp(max=float(collector.upper)).expand(len(lowers))
        # The present range comes first, so that it wins ties.
        lowers, uppers = torch.cat([lower[None], lowers]), torch.cat([upper[None], uppers])
        noise = _noise(values, counts, lowers, uppers, spec)
        best = int(noise.argmin())
        if float(noise[best]) * _TOLERANCE < float(noise[0]):
            lower, upper = lowers[best], uppers[best]
    return lower.float(), upper.float()


def least_noise_amax(collector: HistogramCollector, spec: QuantSpec) -> float:
    """Return the amax of the symmetric range with the least noise; of equally good ones, the widest.

    The candidates are 121 steps between the largest magnitude and a sixteenth of it.

    Args:
        collector: A collector that has seen values other than zero, all finite.
        spec: A symmetric spec.
    """
    values, counts = _filled_bins(collector)
    tried = float(collector.amax) * torch.linspace(1, 1 / 16, 121, dtype=torch.float64)
    noise = _noise(values, counts, -tried, tried, spec)
    good = noise <= noise.min() * _TOLERANCE
    return float(tried[int(good.nonzero()[0])])


def share_outside(collector: HistogramCollector, range_: Range, *, symmetric: bool) -> float:
    """Return the share of values beyond a range, 0 to 1, if values are spread evenly inside their bin."""
    lower, upper = range_.bounds(symmetric=symmetric)
    if not collector.width or not collector.count:
        return 0.0
    edges, counts = collector.edges, collector.counts.double()
    above = (edges[1:] - float(upper)) / edges.diff()
    below = (float(lower) - edges[:-1]) / edges.diff()
    above = above.clamp(0, 1) if float(upper) < float(collector.upper) else torch.zeros_like(above)
    below = below.clamp(0, 1) if float(lower) > float(collector.lower) else torch.zeros_like(below)
    return min(float((counts * (above + below)).sum()) / collector.count, 1.0)


def decibels(ratio: float) -> float:
    """Return a noise ratio as a signal-to-noise ratio in decibels, rounded; 200 without noise."""
    return round(-10 * math.log10(max(ratio, 1e-20)), 2)


def _filled_bins(collector: HistogramCollector) -> tuple[Tensor, Tensor]:
    """Return the middles of the bins that are not empty, and their counts, float64."""
    filled = collector.counts > 0
    edges = collector.edges
    middles = (edges[1:] + edges[:-1]) / 2
    return middles[filled], collector.counts[filled].double()


def _noise(values: Tensor, counts: Tensor, lowers: Tensor, uppers: Tensor, spec: QuantSpec) -> Tensor:
    """Return the sum of squared errors for each pair of bounds, ``(pairs,)``."""
    scale, zero = functional.grid(lowers, uppers, spec)
    step, zero = scale.double()[:, None], zero.double()[:, None]
    if spec.is_float8:
        rounded = functional.quantize_float8((values / step).float(), torch.ones(()))
        return rounded.double().mul_(step).sub_(values).square_() @ counts
    error = (
        torch.minimum(torch.maximum((values / step).round_(), spec.qmin - zero), spec.qmax - zero)
        .mul_(step)
        .sub_(values)
    )
    return error.square_() @ counts
