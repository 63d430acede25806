"""Which values of a batch belong to tokens, and which to padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from calibration.statistics.batch_cache import BufferPool, SummaryCache

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["TokenMask"]

_CHUNK = 2**19  # so many values fit into a cache, and bound the memory for what is computed from them


class TokenMask:
    """The positions of the current batch that hold tokens. The collectors of a run share one.

    Args:
        keys: Whether the last axis of attention weights ``(batch, heads, seq, seq)`` is masked too. The weights of
            padding positions are zeros that no token produced, and would distort the statistics.

    Attributes:
        summaries: What the collectors found in the tensors of this batch.
        buffers: Their working memory.
    """

    def __init__(self, *, keys: bool = False) -> None:
        self.summaries = SummaryCache()
        self.buffers = BufferPool()
        self._keys = keys
        self._mask: Tensor | None = None
        self._rows = torch.empty(0, dtype=torch.long)
        self._row_chunks: dict[int, tuple[Tensor, ...]] = {}
        self._spans: list[tuple[int, int]] | None = None

    def set(self, attention_mask: Tensor | None) -> None:
        """Set the mask of the next batch.

        Args:
            attention_mask: ``(batch, seq)``, not 0 for tokens; None if all positions are tokens. A mask without padding
                costs no time.
        """
        self.summaries.clear()
        mask = None if attention_mask is None else attention_mask.reshape(-1, attention_mask.shape[-1]) != 0
        # Without padding there is nothing to select, and collectors can read the tensors directly.
        self._mask = None if mask is None or bool(mask.all()) else mask
        if self._mask is not None:
            self._rows = self._mask.flatten().nonzero().squeeze(1)
            self._row_chunks = {}
            self._spans = _token_spans(self._mask) if self._keys else None

    def select(self, x: Tensor) -> Tensor:
        """Return the values of ``x`` that belong to tokens.

        The shape of ``x`` decides:

        1. ``(batch, seq, hidden)`` loses its padding positions.
        2. ``(batch, heads, seq, k)`` does too.
        3. ``(batch, heads, seq, seq)`` loses them on both axes if ``keys`` is set.
        4. Anything else, such as a pooled vector, has no positions and is returned whole.
        """
        match self._case(x):
            case 1 | 2:
                return _by_tokens(x).index_select(0, self._rows)
            case 3:
                return self._between_tokens(x)
        return x

    def chunks(self, x: Tensor) -> Iterator[Tensor]:
        """Yield the values of :meth:`select` in flat, non-empty chunks, in any order.

        Each chunk is valid until the next one is requested, because they share memory.
        """
        match self._case(x):
            case 1 | 2:
                yield from self._token_chunks(_by_tokens(x))
            case 3:
                yield from _split(self._between_tokens(x))
            case _:
                yield from _split(_in_memory_order(x).reshape(-1))

    def _case(self, x: Tensor) -> int:
        """Return the number of the case in :meth:`select`."""
        mask, shape = self._mask, x.shape
        if mask is None or len(shape) not in (3, 4) or (shape[0], shape[-2]) != mask.shape:
            return 4
        if len(shape) == 3:
            return 1
        return 3 if self._keys and shape[-1] == shape[-2] else 2

    def _token_chunks(self, positions: Tensor) -> Iterator[Tensor]:
        """Yield the rows of ``positions``, ``(batch * seq, ...)``, that belong to tokens."""
        width = positions[0].numel()
        # The split of the rows depends only on the width, which many slots have in common.
        size = max(_CHUNK // max(width, 1), 1)
        if size not in self._row_chunks:
            self._row_chunks[size] = torch.split(self._rows, size)
        for rows in self._row_chunks[size]:
            if count := rows.shape[0] * width:
                selected = self.buffers.take("selected", count, positions)
                torch.index_select(positions, 0, rows, out=selected.view(rows.shape[0], *positions.shape[1:]))
                yield selected

    def _between_tokens(self, x: Tensor) -> Tensor:
        """Return the weights of tokens for tokens, flat, from ``(batch, heads, seq, seq)``."""
        if self._spans is None:
            mask = self._mask
            assert mask is not None
            return x.masked_select(mask[:, None, :, None] & mask[:, None, None, :])
        return torch.cat([row[:, a:b, a:b].reshape(-1) for row, (a, b) in zip(x, self._spans, strict=True)])


def _split(flat: Tensor) -> Iterable[Tensor]:
    return torch.split(flat, _CHUNK) if flat.numel() > _CHUNK else [flat] * (flat.numel() > 0)


def _by_tokens(x: Tensor) -> Tensor:
    """Return ``(batch * seq, ...)`` for ``(batch, seq, hidden)`` or ``(batch, heads, seq, k)``."""
    return (x if x.dim() == 3 else x.transpose(1, 2)).flatten(0, 1)


def _in_memory_order(x: Tensor) -> Tensor:
    """Return a view with the axes in the order of memory, so that a transposed tensor is flattened without a copy."""
    return x.permute(sorted(range(x.dim()), key=x.stride, reverse=True))


def _token_spans(mask: Tensor) -> list[tuple[int, int]] | None:
    """Return where the tokens of each row begin and end, or None if padding stands between tokens.

    Slices are much faster than a mask.
    """
    counts = mask.sum(1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    starts = torch.where(mask, positions, mask.shape[1]).amin(1)
    ends = torch.where(mask, positions + 1, 0).amax(1)
    if not bool(((ends - starts == counts) | (counts == 0)).all()):
        return None
    return [(start, max(start, end)) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
