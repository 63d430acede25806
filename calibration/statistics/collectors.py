"""Collectors: statistics of one slot, batch by batch, in constant memory.

What a collector holds in the end depends on the values alone, not on how they were cut into batches, ordered or divided
among processes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor

from calibration.statistics.counts import Finding

if TYPE_CHECKING:
    from collections.abc import Mapping

    from calibration.statistics.token_mask import TokenMask

__all__ = ["Collector", "HistogramCollector", "MinMaxCollector"]

_TINY = 2.0**-126  # the smallest normal number of float32


class Collector(Protocol):
    """Takes note of tensors; a method (``calibration.methods.method``) reads what it holds."""

    kind: ClassVar[str]

    @property
    def count(self) -> int:
        """How many values were seen."""
        ...

    @property
    def amax(self) -> float:
        """The largest magnitude that was seen."""
        ...

    @property
    def is_finite(self) -> bool:
        """Whether all values were numbers."""
        ...

    def update(self, x: Tensor) -> None:
        """Take note of ``x``, any shape, any floating type."""
        ...

    def state(self) -> dict[str, Tensor]:
        """All that is held, on the CPU."""
        ...

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add what another collector of this kind held, as if its values had been seen here."""
        ...


class MinMaxCollector:
    """The smallest and the largest value; NaN once a NaN was seen.

    Args:
        mask: which positions count.

    Attributes:
        count: how many values were seen.
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
        """The largest magnitude; -inf before there is one, NaN after a NaN."""
        return self._upper if self._upper > -self._lower or math.isnan(self._upper) else -self._lower

    @property
    def is_finite(self) -> bool:
        """Whether all values were numbers; so it is before the first."""
        return self.count == 0 or math.isfinite(self.amax)

    def update(self, x: Tensor) -> None:
        """Take note of ``x``; what is in a tensor that was shown to a collector with the same mask is known already."""
        found = self._mask.counted.find(x)
        if found is None or not self._is_enough(found):
            found = self._look_at(x)
            if math.isfinite(found.lower) and math.isfinite(found.upper):
                self._mask.counted.note(x, found)
        self._add(found)

    def _is_enough(self, found: Finding) -> bool:  # noqa: ARG002 - others want more
        """Whether looking at the tensor again would find nothing else."""
        return True

    def _look_at(self, x: Tensor) -> Finding:
        lower, upper, count = math.inf, -math.inf, 0
        for part in self._mask.parts(x):
            lower, upper = _wider(lower, upper, *_extremes(part))
            count += part.numel()
        return Finding(lower, upper, count)

    def _add(self, found: Finding) -> None:
        self._extend(found.lower, found.upper, found.count)

    def _extend(self, lower: float, upper: float, count: int) -> None:
        self._lower, self._upper = _wider(self._lower, self._upper, lower, upper)
        self.count += count

    def state(self) -> dict[str, Tensor]:
        """``count`` int64, ``lower`` and ``upper`` float32, all ``()``."""
        return {"count": torch.tensor(self.count), "lower": self.lower, "upper": self.upper}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add what :meth:`state` of another collector gave."""
        self._add(Finding(float(state["lower"]), float(state["upper"]), int(state["count"])))


class HistogramCollector(MinMaxCollector):
    """Counts in bins of equal width, as many below zero as above, beside the smallest and the largest value.

    The width is a power of two: the smallest for which the bins reach all values. When a value lies outside, the width
    doubles and pairs of bins become one. Dividing by a power of two is exact, and so is merging; so the result is the
    same in whatever order values come.

    Args:
        mask: which positions count.
        half: number of bins on either side, the one around zero counted on both; even.

    Attributes:
        counts: int64 ``(2 * half - 1,)``. Bin ``half - 1 + k`` holds magnitudes from ``|k| * width`` up to, not
            including, ``(|k| + 1) * width`` with the sign of k: the one in the middle is twice as wide as the others.
        width: of a bin, 0.0 before the first value that is not zero.
    """

    kind: ClassVar[str] = "histogram"

    def __init__(self, mask: TokenMask, half: int = 2048) -> None:
        super().__init__(mask)
        self.half = half
        self._index = torch.int16 if half <= 2**14 else torch.int32  # what holds the number of a bin
        self.counts = torch.zeros(2 * half - 1, dtype=torch.int64)
        self.width = 0.0

    @property
    def edges(self) -> Tensor:
        """The ``2 * half`` edges of the bins, float64, ascending; none at zero."""
        outer = torch.arange(1, self.half + 1, dtype=torch.float64) * self.width
        return torch.cat([-outer.flip(0), outer])

    @property
    def magnitudes(self) -> tuple[Tensor, Tensor]:
        """Counts of ``|x|`` in ``half`` bins of equal width from zero on, and their ``half + 1`` edges, float64."""
        counts = self.counts[self.half - 1 :].clone()
        counts[1:] += self.counts[: self.half - 1].flip(0)
        return counts, torch.arange(self.half + 1, dtype=torch.float64) * self.width

    def _is_enough(self, found: Finding) -> bool:
        if found.counts is None or len(found.counts) != len(self.counts):
            return False
        return found.width <= max(self.width, self._needed(max(found.upper, -found.lower)))

    def _look_at(self, x: Tensor) -> Finding:
        lower, upper, count = math.inf, -math.inf, 0
        counts, width = None, self.width  # in bins of this size at least it will be added
        for part in self._mask.parts(x):
            lower, upper = _wider(lower, upper, *_extremes(part))
            count += part.numel()
            amax = max(upper, -lower)
            if math.isfinite(lower) and math.isfinite(upper):
                if counts is None:
                    width = max(width, self._needed(amax))
                    counts = self._bins(part, width)
                else:
                    counts, width = _widened(counts, width, self._needed(amax))
                    counts += self._bins(part, width)
        return Finding(lower, upper, count, width, torch.zeros_like(self.counts) if counts is None else counts)

    def _bins(self, part: Tensor, width: float) -> Tensor:
        """How many values of ``part`` each bin gets; none lies outside."""
        if width == 0.0:
            counts = torch.zeros_like(self.counts)
            counts[self.half - 1] = part.numel()
            return counts
        # A product with a power of two is exact, or too small for the next bin either way; `to` cuts towards zero.
        scratch, count = self._mask.scratch, part.numel()
        scaled = torch.mul(part, 1.0 / width, out=scratch.take("scaled", count, part, torch.float32))
        index = scratch.take("index", count, part, self._index).copy_(scaled).add_(self.half - 1)
        return torch.bincount(index, minlength=2 * self.half - 1).cpu()

    def _add(self, found: Finding) -> None:
        super()._add(found)
        counts = found.counts
        assert counts is not None
        self.counts, self.width = _widened(self.counts, self.width, found.width)
        if found.width > 0.0:
            counts, _ = _widened(counts, found.width, self.width)
        self.counts = self.counts + counts  # a new tensor each time: whoever holds the old one keeps what it was

    def _needed(self, amax: float) -> float:
        if amax == 0.0:
            return 0.0
        width = max(2.0 ** math.ceil(math.log2(amax / self.half)), _TINY)
        return width if width * self.half > amax else width * 2  # the outer edge is not part of a bin

    def state(self) -> dict[str, Tensor]:
        """What the smallest and largest value take, ``counts`` int64, ``width`` float64 ``()``."""
        width = torch.tensor(self.width, dtype=torch.float64)
        return {**super().state(), "counts": self.counts, "width": width}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add what :meth:`state` of another collector gave."""
        extremes = float(state["lower"]), float(state["upper"]), int(state["count"])
        self._add(Finding(*extremes, float(state["width"]), state["counts"]))


def _extremes(part: Tensor) -> tuple[float, float]:
    lower, upper = torch.aminmax(part)
    return float(lower.float()), float(upper.float())


def _wider(lower: float, upper: float, other_lower: float, other_upper: float) -> tuple[float, float]:
    """What covers two ranges. A NaN is smaller than nothing and nothing is smaller than it: it stays, once it came."""
    if other_lower < lower or math.isnan(other_lower):
        lower = other_lower
    if other_upper > upper or math.isnan(other_upper):
        upper = other_upper
    return lower, upper


def _widened(counts: Tensor, width: float, wanted: float) -> tuple[Tensor, float]:
    """The same counts in bins of at least the wanted width, and the width they have then."""
    if width == 0.0:
        return counts, wanted
    while width < wanted:
        counts = _merged_in_pairs(counts)
        width *= 2
    return counts, width


def _merged_in_pairs(counts: Tensor) -> Tensor:
    """Counts for bins twice as wide: bin k goes to bin k / 2, cut towards zero."""
    middle = len(counts) // 2
    merged = torch.zeros_like(counts)
    merged[middle] = counts[middle - 1 : middle + 2].sum()
    below = counts[: middle - 1].reshape(-1, 2).sum(1)
    above = counts[middle + 2 :].reshape(-1, 2).sum(1)
    merged[middle - len(below) : middle] = below
    merged[middle + 1 : middle + 1 + len(above)] = above
    return merged
