"""Collectors: statistics of one slot, batch by batch, in constant memory.

What a collector holds in the end depends on the values alone, not on how they were cut into batches, ordered or divided
among processes.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from calibration.token_mask import TokenMask

__all__ = ["Collector", "HistogramCollector", "MinMaxCollector"]

_TINY = 2.0**-126  # the smallest normal number of float32


class Collector(Protocol):
    """Takes note of tensors; a method (``calibration.methods``) reads what it holds."""

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
        """Take note of ``x``."""
        for part in self._mask.parts(x):
            self._observe(part)

    def _observe(self, part: Tensor) -> None:
        lower, upper = torch.aminmax(part)
        self._extend(float(lower.float()), float(upper.float()), part.numel())

    def _extend(self, lower: float, upper: float, count: int) -> None:
        # A NaN is smaller than nothing and nothing is smaller than it: it comes in by name, and stays.
        if lower < self._lower or math.isnan(lower):
            self._lower = lower
        if upper > self._upper or math.isnan(upper):
            self._upper = upper
        self.count += count

    def state(self) -> dict[str, Tensor]:
        """``count`` int64, ``lower`` and ``upper`` float32, all ``()``."""
        return {"count": torch.tensor(self.count), "lower": self.lower, "upper": self.upper}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add what :meth:`state` of another collector gave."""
        self._extend(float(state["lower"]), float(state["upper"]), int(state["count"]))


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

    def _observe(self, part: Tensor) -> None:
        super()._observe(part)
        amax = self.amax
        if not math.isfinite(amax):
            return
        self._widen(self._needed(amax))
        if self.width == 0.0:
            self.counts[self.half - 1] += part.numel()
            return
        # A product with a power of two is exact, or too small for the next bin either way; `to` cuts towards zero.
        index = (part.float() * (1.0 / self.width)).to(torch.int32).add_(self.half - 1)
        self.counts += torch.bincount(index.reshape(-1), minlength=2 * self.half - 1).cpu()

    def _needed(self, amax: float) -> float:
        if amax == 0.0:
            return 0.0
        width = max(2.0 ** math.ceil(math.log2(amax / self.half)), _TINY)
        return width if width * self.half > amax else width * 2  # the outer edge is not part of a bin

    def _widen(self, width: float) -> None:
        if self.width == 0.0:
            self.width = width
        while self.width < width:
            self.counts = _merged_in_pairs(self.counts)
            self.width *= 2

    def state(self) -> dict[str, Tensor]:
        """What the smallest and largest value take, ``counts`` int64, ``width`` float64 ``()``."""
        width = torch.tensor(self.width, dtype=torch.float64)
        return {**super().state(), "counts": self.counts.clone(), "width": width}

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add what :meth:`state` of another collector gave."""
        super().merge(state)
        counts, width = state["counts"], float(state["width"])
        self._widen(width)
        while 0.0 < width < self.width:
            counts = _merged_in_pairs(counts)
            width *= 2
        self.counts = self.counts + counts


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
