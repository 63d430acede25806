"""Methods: from the statistics of a slot to its range. Each names the collector that it reads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from calibration.collectors import Collector, HistogramCollector, MinMaxCollector, TokenMask
from qdq.errors import CalibrationError
from qdq.quantizer import Range

__all__ = ["Max", "Method", "Percentile", "method_named"]


class Method(Protocol):
    """A way to choose ranges."""

    @property
    def name(self) -> str:
        """As on the command line."""
        ...

    def collector(self, mask: TokenMask) -> Collector:
        """A fresh collector for one slot."""
        ...

    def range(self, collector: Any) -> Range:
        """The range, from what a collector of this method holds."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """Name and settings, for the checkpoint."""
        ...


@dataclass(frozen=True)
class Max:
    """The whole range that was seen: nothing is clipped."""

    name = "max"

    def collector(self, mask: TokenMask) -> MinMaxCollector:
        """Smallest and largest value."""
        return MinMaxCollector(mask)

    def range(self, collector: MinMaxCollector) -> Range:
        """``[min, max]``."""
        lower, upper = collector.lower, collector.upper
        return Range(lower, upper, torch.maximum(lower.abs(), upper.abs()))

    def to_dict(self) -> dict[str, Any]:
        """Name alone."""
        return {"name": self.name}


@dataclass(frozen=True)
class Percentile:
    """Clip the tails: symmetric ranges hold ``percentile`` % of the magnitudes, affine ranges of the values.

    Args:
        percentile: above 50 and at most 100; an affine range leaves out half of the rest on either side.
    """

    percentile: float = 99.99
    name = "percentile"

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise CalibrationError(f"percentile is {self.percentile}, must be above 50 and at most 100")

    def collector(self, mask: TokenMask) -> HistogramCollector:
        """A histogram with its extremes."""
        return HistogramCollector(mask)

    def range(self, collector: HistogramCollector) -> Range:
        """Percentiles by linear interpolation inside a bin, never outside what was seen; not finite if that was not."""
        if not bool(torch.isfinite(collector.lower) & torch.isfinite(collector.upper)):
            return Max().range(collector)
        half = len(collector.counts) // 2
        edges, counts = collector.edges, collector.counts.double()
        tail = (100 - self.percentile) / 200
        lower = _quantile(counts, edges, tail).float().clamp(collector.lower, collector.upper)
        upper = _quantile(counts, edges, 1 - tail).float().clamp(collector.lower, collector.upper)
        magnitudes = counts[half:] + counts[:half].flip(0)
        amax = _quantile(magnitudes, edges[half:], self.percentile / 100).float()
        return Range(lower, upper, amax.clamp(max=torch.maximum(collector.lower.abs(), collector.upper.abs())))

    def to_dict(self) -> dict[str, Any]:
        """Name and percentile."""
        return {"name": self.name, "percentile": self.percentile}


def _quantile(counts: Tensor, edges: Tensor, fraction: float) -> Tensor:
    """The value below which ``fraction`` of the counts lie, values spread evenly inside their bin."""
    cumulative = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    target = cumulative.new_tensor(fraction) * cumulative[-1]
    index = int(torch.searchsorted(cumulative, target, right=False).clamp(1, len(counts))) - 1
    inside = ((target - cumulative[index]) / counts[index].clamp(min=1)).clamp(0, 1)
    return edges[index] + inside * (edges[index + 1] - edges[index])


def method_named(name: str, *, percentile: float = Percentile.percentile) -> Method:
    """The method of the command line's ``--calibrator``.

    Raises:
        CalibrationError: for a name that is not known, or a percentile out of range.
    """
    if name == Max.name:
        return Max()
    if name == Percentile.name:
        return Percentile(percentile)
    raise CalibrationError(f"no calibrator {name!r}: it must be one of max, percentile")
