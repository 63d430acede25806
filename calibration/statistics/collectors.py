"""Collectors: statistics of one slot, gathered batch by batch in constant memory.

The result depends on the values alone. It does not depend on how they were cut into batches, ordered, or divided among
processes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor

from calibration.statistics.batch_cache import TensorSummary

if TYPE_CHECKING:
    from collections.abc import Mapping

    from calibration.statistics.token_mask import TokenMask

__all__ = ["Collector", "HistogramCollector", "MinMaxCollector"]

_SMALLEST_NORMAL = 2.0**-126  # of float32


class Collector(Protocol):
    """A collector of the statistics from which a method (:mod:`calibration.methods.method`) chooses a range."""

    kind: ClassVar[str]

    @property
    def count(self) -> int:
        """The number of values that were seen."""
        ...

    @property
    def amax(self) -> float:
        """The largest magnitude that was seen."""
        ...

    @property
    def is_finite(self) -> bool:
        """Whether all values were finite."""
        ...

    def update(self, x: Tensor) -> None:
        """Add the values of ``x``, of any shape and any floating type."""
        ...

    def state(self) -> dict[str, Tensor]:
        """Return all statistics, on the CPU."""
        ...

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the statistics of another collector of this kind, as if its values had been seen here."""
        ...


class MinMaxCollector:
    """The smallest and the largest value; NaN once a NaN was seen.

    Args:
        mask: Tells which positions are tokens.

    Attributes:
        count: The number of values that were seen.
    """

    kind: ClassVar[str] = "min-max"

    def __init__(self, mask: TokenMask) -> None:
        self._mask = mask
        self.count = 0
        self._lower = math.inf
        self._upper = -math.inf

    @property
    def lower(self) -> Tensor:
        """The smallest value, float32 ``()``."""
        return torch.tensor(self._lower)

    @property
    def upper(self) -> Tensor:
        """The largest value, float32 ``()``."""
        return torch.tensor(self._upper)

    @property
    def amax(self) -> float:
        """The largest magnitude; -inf before the first value, NaN after a NaN."""
        return self._upper if self._upper > -self._lower or math.isnan(self._upper) else -self._lower

    @property
    def is_finite(self) -> bool:
        """Whether all values were finite; true before the first value."""
        return self.count == 0 or math.isfinite(self.amax)

    def update(self, x: Tensor) -> None:
        """Add the values of ``x``. A tensor that a collector with the same mask has summarized is not read again."""
        summary = self._mask.summaries.get(x)
        if summary is None or not self._is_sufficient(summary):
            summary = self._summarize(x)
            if math.isfinite(summary.lower) and math.isfinite(summary.upper):
                self._mask.summaries.put(x, summary)
        self._add(summary)

    def _is_sufficient(self, summary: TensorSummary) -> bool:  # noqa: ARG002 (subclasses need more)
        """Return whether a summary holds all that this collector would find in the tensor."""
        return True

    def _summarize(self, x: Tensor) -> TensorSummary:
        lower, upper, count = math.inf, -math.inf, 0
        for chunk in self._mask.chunks(x):
            lower, upper = _union(lower, upper, *_extremes(chunk))
            count += chunk.numel()
        return TensorSummary(lower, upper, count)

    def _add(self, summary: TensorSummary) -> None:
        self._lower, self._upper = _union(self._lower, self._upper, summary.lower, summary.upper)
        self.count += summary.count

    def state(self) -> dict[str, Tensor]:
        """Return ``count`` (int64), ``lower`` and ``upper`` (float32), all of shape ``()``."""
        return {"count": torch.tensor(self.count), "lower": self.lower, "upper": self.upper}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the :meth:`state` of another collector."""
        self._add(TensorSummary(float(state["lower"]), float(state["upper"]), int(state["count"])))


class HistogramCollector(MinMaxCollector):
    """A histogram with bins of equal width, as many below zero as above, and the smallest and largest value.

    The width is the smallest power of two for which the bins reach all values. When a value lies outside, the width
    doubles and pairs of bins are merged. Dividing by a power of two is exact, and so is merging, so that the result
    does not depend on the order of the values.

    Args:
        mask: Tells which positions are tokens.
        half: The number of bins on either side, an even number. The bin around zero counts for both sides.

    Attributes:
        counts: int64 ``(2 * half - 1,)``. Bin ``half - 1 + k`` holds magnitudes from ``|k| * width`` up to, but not
            including, ``(|k| + 1) * width`` with the sign of k. The one in the middle is twice as wide as the others.
        width: The width of a bin; 0.0 before the first value that is not zero.
    """

    kind: ClassVar[str] = "histogram"

    def __init__(self, mask: TokenMask, half: int = 2048) -> None:
        super().__init__(mask)
        self.half = half
        self._index_dtype = torch.int16 if half <= 2**14 else torch.int32
        self.counts = torch.zeros(2 * half - 1, dtype=torch.int64)
        self.width = 0.0

    @property
    def edges(self) -> Tensor:
        """The ``2 * half`` edges of the bins, float64, ascending; none is at zero."""
        outer = torch.arange(1, self.half + 1, dtype=torch.float64) * self.width
        return torch.cat([-outer.flip(0), outer])

    @property
    def magnitudes(self) -> tuple[Tensor, Tensor]:
        """The counts of ``|x|`` in ``half`` bins of equal width from zero on, and their ``half + 1`` edges, float64."""
        counts = self.counts[self.half - 1 :].clone()
        counts[1:] += self.counts[: self.half - 1].flip(0)
        return counts, torch.arange(self.half + 1, dtype=torch.float64) * self.width

    def _is_sufficient(self, summary: TensorSummary) -> bool:
        if summary.counts is None or len(summary.counts) != len(self.counts):
            return False
        return summary.width <= max(self.width, self._width_for(max(summary.upper, -summary.lower)))

    def _summarize(self, x: Tensor) -> TensorSummary:
        lower, upper, count = math.inf, -math.inf, 0
        # Bins narrower than the present ones would be merged anyway.
        counts, width = None, self.width
        for chunk in self._mask.chunks(x):
            lower, upper = _union(lower, upper, *_extremes(chunk))
            count += chunk.numel()
            amax = max(upper, -lower)
            if math.isfinite(lower) and math.isfinite(upper):
                if counts is None:
                    width = max(width, self._width_for(amax))
                    counts = self._bin_counts(chunk, width)
                else:
                    counts, width = _widen(counts, width, self._width_for(amax))
                    counts += self._bin_counts(chunk, width)
        return TensorSummary(lower, upper, count, width, torch.zeros_like(self.counts) if counts is None else counts)

    def _bin_counts(self, chunk: Tensor, width: float) -> Tensor:
        """Return how many values of ``chunk`` fall into each bin; the bins reach all of them."""
        if width == 0.0:
            counts = torch.zeros_like(self.counts)
            counts[self.half - 1] = chunk.numel()
            return counts
        # A product with a power of two is exact, or too small to reach the next bin. The cast to integers truncates
        # towards zero, which puts both halves of the middle bin together.
        buffers, count = self._mask.buffers, chunk.numel()
        scaled = torch.mul(chunk, 1.0 / width, out=buffers.take("scaled", count, chunk, torch.float32))
        index = buffers.take("index", count, chunk, self._index_dtype).copy_(scaled).add_(self.half - 1)
        return torch.bincount(index, minlength=2 * self.half - 1).cpu()

    def _add(self, summary: TensorSummary) -> None:
        super()._add(summary)
        counts = summary.counts
        assert counts is not None
        self.counts, self.width = _widen(self.counts, self.width, summary.width)
        if summary.width > 0.0:
            counts, _ = _widen(counts, summary.width, self.width)
        self.counts = self.counts + counts  # not in place: a captured copy of this collector keeps the old tensor

    def _width_for(self, amax: float) -> float:
        """Return the smallest power of two for which the bins reach ``amax``."""
        if amax == 0.0:
            return 0.0
        width = max(2.0 ** math.ceil(math.log2(amax / self.half)), _SMALLEST_NORMAL)
        return width if width * self.half > amax else width * 2  # the outer edge belongs to no bin

    def state(self) -> dict[str, Tensor]:
        """Return the state of a :class:`MinMaxCollector`, ``counts`` (int64) and ``width`` (float64 ``()``)."""
        width = torch.tensor(self.width, dtype=torch.float64)
        return {**super().state(), "counts": self.counts, "width": width}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add the :meth:`state` of another collector."""
        extremes = float(state["lower"]), float(state["upper"]), int(state["count"])
        self._add(TensorSummary(*extremes, float(state["width"]), state["counts"]))


def _extremes(chunk: Tensor) -> tuple[float, float]:
    lower, upper = torch.aminmax(chunk)
    return float(lower.float()), float(upper.float())


def _union(lower: float, upper: float, other_lower: float, other_upper: float) -> tuple[float, float]:
    """Return the range that covers two ranges.

    No comparison with NaN is true, so a NaN stays once it was seen.
    """
    if other_lower < lower or math.isnan(other_lower):
        lower = other_lower
    if other_upper > upper or math.isnan(other_upper):
        upper = other_upper
    return lower, upper


def _widen(counts: Tensor, width: float, wanted: float) -> tuple[Tensor, float]:
    """Return the counts in bins of at least the wanted width, and their width."""
    if width == 0.0:
        return counts, wanted
    while width < wanted:
        counts = _merge_pairs(counts)
        width *= 2
    return counts, width


def _merge_pairs(counts: Tensor) -> Tensor:
    """Return the counts in bins twice as wide: bin k goes to bin k / 2, truncated towards zero."""
    middle = len(counts) // 2
    merged = torch.zeros_like(counts)
    merged[middle] = counts[middle - 1 : middle + 2].sum()
    below = counts[: middle - 1].reshape(-1, 2).sum(1)
    above = counts[middle + 2 :].reshape(-1, 2).sum(1)
    merged[middle - len(below) : middle] = below
    merged[middle + 1 : middle + 1 + len(above)] = above
    return merged
