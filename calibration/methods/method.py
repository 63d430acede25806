"""Methods: each chooses a range from the statistics of a slot, and names the collector that it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from calibration.methods.clipping import entropy_amax, mse_amax
from calibration.methods.noise import least_noise_amax, least_noise_bounds
from calibration.statistics.collectors import Collector, HistogramCollector, MinMaxCollector
from qdq.errors import CalibrationError
from qdq.quantization.quantizer import Range
from qdq.quantization.spec import QuantSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from calibration.statistics.token_mask import TokenMask

__all__ = ["Entropy", "HistogramMethod", "Max", "Method", "Mse", "Percentile", "is_constant"]


class Method(Protocol):
    """A method that chooses the range of a slot from its statistics."""

    @property
    def name(self) -> str:
        """The name of the method on the command line."""
        ...

    def collector(self, mask: TokenMask) -> Collector:
        """Return a new collector for one slot.

        Args:
            mask: Tells the collector which positions are tokens.
        """
        ...

    def range(self, collector: Any, spec: QuantSpec | None = None) -> Range:
        """Return the range of one slot.

        Args:
            collector: A collector of this method.
            spec: The spec of the slot; None for a slot that stays float, which is treated as symmetric int8.
        """
        ...

    def to_dict(self) -> dict[str, Any]:
        """Return the name and the settings, for the checkpoint."""
        ...


@dataclass(frozen=True)
class Max:
    """The whole range that was seen. Nothing is clipped."""

    name = "max"

    def collector(self, mask: TokenMask) -> MinMaxCollector:
        """Return a collector of the smallest and largest value."""
        return MinMaxCollector(mask)

    def range(self, collector: MinMaxCollector, spec: QuantSpec | None = None) -> Range:  # noqa: ARG002
        """Return ``[min, max]``."""
        lower, upper = collector.lower, collector.upper
        return Range(lower, upper, torch.maximum(lower.abs(), upper.abs()))

    def to_dict(self) -> dict[str, Any]:
        """Return the name."""
        return {"name": self.name}


class HistogramMethod:
    """A method that reads a histogram."""

    def collector(self, mask: TokenMask) -> HistogramCollector:
        """Return a collector of a histogram with its extremes."""
        return HistogramCollector(mask)


@dataclass(frozen=True)
class Percentile(HistogramMethod):
    """A range without the tails: symmetric ranges hold ``percentile`` % of the magnitudes, affine ranges of the values.

    Args:
        percentile: Above 50 and at most 100. An affine range leaves out half of the rest on either side.

    Raises:
        CalibrationError: The percentile is out of range.
    """

    percentile: float = 99.99
    name = "percentile"

    def __post_init__(self) -> None:
        if not 50 < self.percentile <= 100:
            raise CalibrationError(f"percentile is {self.percentile}, but must be above 50 and at most 100")

    def range(self, collector: HistogramCollector, spec: QuantSpec | None = None) -> Range:  # noqa: ARG002
        """Return the percentiles, interpolated inside a bin.

        The range never exceeds what was seen. It is not finite if that was not.
        """
        if not collector.is_finite:
            return Max().range(collector)
        edges, counts = collector.edges, collector.counts.double()
        tail = (100 - self.percentile) / 200  # on either side
        lower = _quantile(counts, edges, tail).float().clamp(collector.lower, collector.upper)
        upper = _quantile(counts, edges, 1 - tail).float().clamp(collector.lower, collector.upper)
        magnitudes, edges = collector.magnitudes
        amax = _quantile(magnitudes.double(), edges, self.percentile / 100).float()
        return Range(lower, upper, amax.clamp(max=collector.amax))

    def to_dict(self) -> dict[str, Any]:
        """Return the name and the percentile."""
        return {"name": self.name, "percentile": self.percentile}


@dataclass(frozen=True)
class Mse(HistogramMethod):
    """The range with the least squared error of quantization.

    1. Symmetric ranges follow the rule of pytorch-quantization (:func:`calibration.methods.clipping.mse_amax`).
    2. Affine ranges are searched over both ends (:func:`calibration.methods.noise.least_noise_bounds`).
    3. Ranges of float8 are searched over amax (:func:`calibration.methods.noise.least_noise_amax`).
    """

    name = "mse"

    def range(self, collector: HistogramCollector, spec: QuantSpec | None = None) -> Range:
        """Return a range that never exceeds what was seen. It is not finite if that was not."""
        if is_constant(collector):
            return Max().range(collector)
        spec = spec or QuantSpec()
        if spec.is_float8:
            amax = least_noise_amax(collector, spec)
        else:
            amax = mse_amax(*_magnitudes(collector), bits=spec.bits, unsigned=spec.starts_at_zero)
        return Range(*least_noise_bounds(collector, spec), torch.tensor(min(amax, collector.amax)))

    def to_dict(self) -> dict[str, Any]:
        """Return the name."""
        return {"name": self.name}


@dataclass(frozen=True)
class Entropy(HistogramMethod):
    """The range that loses the least information, by the Kullback-Leibler divergence.

    Magnitudes follow the rule of pytorch-quantization (:func:`calibration.methods.clipping.entropy_amax`). An affine
    range is what was seen, clipped at that magnitude on both sides. The rule counts the steps of integers, so that
    ranges of float8 are not clipped.
    """

    name = "entropy"

    def range(self, collector: HistogramCollector, spec: QuantSpec | None = None) -> Range:
        """Return a range that never exceeds what was seen. It is not finite if that was not."""
        spec = spec or QuantSpec()
        if is_constant(collector) or spec.is_float8:
            return Max().range(collector)
        cut = entropy_amax(*_magnitudes(collector), bits=spec.bits, unsigned=spec.starts_at_zero)
        amax = min(cut, collector.amax)
        # The second clamp is for tensors that lie on one side of zero, where both ends may be beyond amax.
        lower, upper = collector.lower.clamp(min=-amax), collector.upper.clamp(max=amax)
        return Range(lower.clamp(max=amax), upper.clamp(min=-amax), torch.tensor(amax))

    def to_dict(self) -> dict[str, Any]:
        """Return the name."""
        return {"name": self.name}


def is_constant(collector: HistogramCollector) -> bool:
    """Return whether there is nothing to choose, because all values are equal or some are not finite."""
    return not collector.is_finite or bool(collector.lower == collector.upper)


def _magnitudes(collector: HistogramCollector) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the histogram of ``|x|`` up to the last bin that is not empty."""
    counts, edges = collector.magnitudes
    # pytorch-quantization's histogram ends at the largest value; ours ends at a power of two beyond it.
    used = int(counts.nonzero().max()) + 1
    return counts[:used].numpy(), edges[: used + 1].numpy()


def _quantile(counts: Tensor, edges: Tensor, fraction: float) -> Tensor:
    """Return the value below which ``fraction`` of the counts lie, if values are spread evenly inside their bin."""
    cumulative = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    target = cumulative.new_tensor(fraction) * cumulative[-1]
    index = int(torch.searchsorted(cumulative, target, right=False).clamp(1, len(counts))) - 1
    inside = ((target - cumulative[index]) / counts[index].clamp(min=1)).clamp(0, 1)
    return edges[index] + inside * (edges[index + 1] - edges[index])
