"""What the collectors of a run share while a batch is processed: summaries of tensors, and working memory."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["BufferPool", "SummaryCache", "TensorSummary"]


@dataclass(frozen=True)
class TensorSummary:
    """The statistics of one tensor.

    Args:
        lower: The smallest value.
        upper: The largest value.
        count: The number of values.
        width: The width of the histogram's bins; 0.0 without a histogram.
        counts: The number of values in each bin; None without a histogram.
    """

    lower: float
    upper: float
    count: int
    width: float = 0.0
    counts: Tensor | None = None


class SummaryCache:
    """Summaries of the tensors of the current batch.

    Several slots often see the same tensor: the residual, for example, is the tensor that a projection read before.
    Tensors are compared by identity, not by value, and are not kept alive. A tensor that was changed in place since, or
    one made in inference mode, where changes cannot be noticed, counts as another one.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int, TensorSummary]] = {}

    def clear(self) -> None:
        """Forget all tensors."""
        self._known.clear()

    def get(self, x: Tensor) -> TensorSummary | None:
        """Return the summary of this very tensor, or None if there is none."""
        reference, version, summary = self._known.get(id(x), (None, None, None))
        if reference is None or reference() is not x or x._version != version:
            return None
        return summary

    def put(self, x: Tensor, summary: TensorSummary) -> None:
        """Remember the summary of ``x``."""
        # The id of a tensor may be used again after it is freed, so its entry goes with it.
        if not x.is_inference():
            key = id(x)
            self._known[key] = (weakref.ref(x, lambda _: self._known.pop(key, None)), x._version, summary)


class BufferPool:
    """One buffer for each purpose, used again for each piece of a tensor, so that it stays in the processor's cache."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def take(self, purpose: str, count: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """Return ``(count,)`` elements with arbitrary values, on the device of ``like``.

        The buffer that was taken for the same purpose before is overwritten.
        """
        key = purpose, like.device, dtype or like.dtype
        buffer = self._buffers.get(key)
        if buffer is None or buffer.shape[0] < count:
            buffer = self._buffers[key] = torch.empty(count, device=key[1], dtype=key[2])
        return buffer[:count]
