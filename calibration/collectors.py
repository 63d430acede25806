"""Collectors: statistics of one slot, batch by batch, in constant memory.

What a collector holds in the end depends on the values alone, not on how they were cut into batches or ordered.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Collector", "HistogramCollector", "MinMaxCollector", "TokenMask"]

_TINY = 2.0**-126  # the smallest normal number of float32


class TokenMask:
    """Which positions of the current batch hold real tokens; the collectors of a run share one.

    Args:
        keys: for attention weights ``(batch, heads, seq, seq)``, whose last axis is positions too: what is said to
            padding, nothing, is no more data than what padding says.
    """

    def __init__(self, *, keys: bool = False) -> None:
        self._keys = keys
        self._mask: Tensor | None = None

    def set(self, attention_mask: Tensor | None) -> None:
        """Take the mask of the next batch, ``(batch, seq)``, 1 for tokens; a mask without padding costs nothing."""
        mask = None if attention_mask is None else attention_mask.reshape(-1, attention_mask.shape[-1]) != 0
        self._mask = None if mask is None or bool(mask.all()) else mask

    def select(self, x: Tensor) -> Tensor:
        """The values of ``x`` that belong to tokens.

        By the shape of ``x``: (1) ``(batch, seq, hidden)`` and (2) ``(batch, heads, seq, k)`` lose their padding
        positions, (3) ``(batch, heads, seq, seq)`` on both axes where ``keys`` is set; (4) anything else, a pooled
        vector say, has none and is taken whole.
        """
        mask = self._mask
        if mask is None or x.dim() not in (3, 4) or (x.shape[0], x.shape[-2]) != mask.shape:
            return x  # case 4
        if self._keys and x.dim() == 4 and x.shape[-1] == x.shape[-2]:
            return x.masked_select(mask[:, None, :, None] & mask[:, None, None, :])  # case 3
        return (x if x.dim() == 3 else x.transpose(1, 2))[mask]


class Collector(Protocol):
    """Takes note of tensors; a method (``calibration.methods``) reads what it holds."""

    @property
    def count(self) -> int:
        """How many values were seen."""
        ...

    def update(self, x: Tensor) -> None:
        """Take note of ``x``, any shape, any floating type."""
        ...


class MinMaxCollector:
    """The smallest and the largest value; NaN once a NaN was seen.

    Args:
        mask: which positions count.
    """

    def __init__(self, mask: TokenMask) -> None:
        self._mask = mask
        self.count = 0
        self.lower = torch.tensor(math.inf)
        self.upper = torch.tensor(-math.inf)

    def update(self, x: Tensor) -> None:
        """Take note of ``x``."""
        x = self._mask.select(x)
        if x.numel():
            self._observe(x)

    def _observe(self, x: Tensor) -> None:
        lower, upper = torch.aminmax(x)
        self.lower = torch.minimum(self.lower, lower.float().cpu())
        self.upper = torch.maximum(self.upper, upper.float().cpu())
        self.count += x.numel()


class HistogramCollector(MinMaxCollector):
    """Counts in bins of equal width, as many below zero as above, beside the smallest and the largest value.

    The width is a power of two: the smallest for which the bins reach all values. When a value lies outside, the width
    doubles and pairs of bins become one. Dividing by a power of two is exact, and so is merging; so the result is the
    same in whatever order values come.

    Args:
        mask: which positions count.
        bins: number of bins, a multiple of four.

    Attributes:
        counts: int64 ``(bins,)``. A bin holds magnitudes from its inner edge up to, not including, its outer one; zero
            is the first of the upper half.
        width: of a bin, 0.0 before the first value that is not zero.
    """

    _AT_ONCE = 2**18  # what fits a cache, and bounds the memory for the numbers of the bins

    def __init__(self, mask: TokenMask, bins: int = 4096) -> None:
        super().__init__(mask)
        self.counts = torch.zeros(bins, dtype=torch.int64)
        self.width = 0.0

    @property
    def edges(self) -> Tensor:
        """The ``bins + 1`` edges of the bins, float64, ascending."""
        bins = len(self.counts)
        return torch.arange(-bins // 2, bins // 2 + 1, dtype=torch.float64) * self.width

    def _observe(self, x: Tensor) -> None:
        super()._observe(x)
        amax = max(abs(float(self.lower)), abs(float(self.upper)))
        if not math.isfinite(amax):
            return
        self._reach(amax)
        half = len(self.counts) // 2
        if self.width == 0.0:
            self.counts[half] += x.numel()
            return
        for chunk in torch.split(x.reshape(-1).float(), self._AT_ONCE):
            index = (chunk.abs() / self.width).to(torch.int32)
            index = torch.where(chunk < 0, half - 1 - index, half + index)
            self.counts += torch.bincount(index, minlength=2 * half).cpu()

    def _reach(self, amax: float) -> None:
        half = len(self.counts) // 2
        needed = max(2.0 ** math.ceil(math.log2(amax / half)), _TINY) if amax > 0 else 0.0
        if needed * half <= amax:  # the outer edge is not part of a bin
            needed *= 2
        if self.width == 0.0:
            self.width = needed
        while self.width < needed:
            merged = torch.zeros_like(self.counts)
            merged[half // 2 : half // 2 + half] = self.counts.reshape(half, 2).sum(dim=1)
            self.counts = merged
            self.width *= 2
