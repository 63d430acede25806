"""Which values of a batch are data, and which are padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from calibration.statistics.buffers import Scratch
from calibration.statistics.counts import Counted

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["TokenMask"]

_AT_ONCE = 2**19  # values that fit a cache, and bound the memory for what is computed from them


class TokenMask:
    """Which positions of the current batch hold real tokens; the collectors of a run share one.

    Args:
        keys: for attention weights ``(batch, heads, seq, seq)``, whose last axis is positions too: what is said to
            padding, nothing, is no more data than what padding says.

    Attributes:
        counted: what the collectors found in the tensors of this batch.
        scratch: where they compute.
    """

    def __init__(self, *, keys: bool = False) -> None:
        self.counted = Counted()
        self.scratch = Scratch()
        self._keys = keys
        self._mask: Tensor | None = None
        self._rows = torch.empty(0, dtype=torch.long)
        self._chunks: dict[int, tuple[Tensor, ...]] = {}
        self._runs: list[tuple[int, int]] | None = None

    def set(self, attention_mask: Tensor | None) -> None:
        """Take the mask of the next batch, ``(batch, seq)``, 1 for tokens; a mask without padding costs nothing."""
        self.counted.clear()
        mask = None if attention_mask is None else attention_mask.reshape(-1, attention_mask.shape[-1]) != 0
        self._mask = None if mask is None or bool(mask.all()) else mask
        if self._mask is not None:
            self._rows = self._mask.flatten().nonzero().squeeze(1)
            self._chunks = {}
            self._runs = _runs(self._mask) if self._keys else None

    def select(self, x: Tensor) -> Tensor:
        """The values of ``x`` that belong to tokens.

        By the shape of ``x``: (1) ``(batch, seq, hidden)`` and (2) ``(batch, heads, seq, k)`` lose their padding
        positions, (3) ``(batch, heads, seq, seq)`` on both axes where ``keys`` is set; (4) anything else, a pooled
        vector say, has none and is taken whole.
        """
        match self._case(x):
            case 1 | 2:
                return _by_tokens(x).index_select(0, self._rows)
            case 3:
                return self._between_tokens(x)
        return x

    def parts(self, x: Tensor) -> Iterator[Tensor]:
        """What :meth:`select` gives, flat and in any order, in parts of a size that is quickly gone through.

        None is empty, and each is good until the next is asked for: they share memory.
        """
        match self._case(x):
            case 1 | 2:
                yield from self._tokens(_by_tokens(x))
            case 3:
                yield from _in_parts(self._between_tokens(x))
            case _:
                yield from _in_parts(_in_memory_order(x).reshape(-1))

    def _case(self, x: Tensor) -> int:
        mask, shape = self._mask, x.shape
        if mask is None or len(shape) not in (3, 4) or (shape[0], shape[-2]) != mask.shape:
            return 4
        if len(shape) == 3:
            return 1
        return 3 if self._keys and shape[-1] == shape[-2] else 2

    def _tokens(self, tokens: Tensor) -> Iterator[Tensor]:
        """The rows of ``tokens``, ``(batch * seq, ...)``, that are no padding."""
        width = tokens[0].numel()
        at_once = max(_AT_ONCE // max(width, 1), 1)
        if at_once not in self._chunks:
            self._chunks[at_once] = torch.split(self._rows, at_once)
        for rows in self._chunks[at_once]:
            if count := rows.shape[0] * width:
                selected = self.scratch.take("selected", count, tokens)
                torch.index_select(tokens, 0, rows, out=selected.view(rows.shape[0], *tokens.shape[1:]))
                yield selected

    def _between_tokens(self, x: Tensor) -> Tensor:
        """What tokens say to tokens, of ``(batch, heads, seq, seq)``, flat."""
        if self._runs is None:
            mask = self._mask
            assert mask is not None
            return x.masked_select(mask[:, None, :, None] & mask[:, None, None, :])
        return torch.cat([row[:, a:b, a:b].reshape(-1) for row, (a, b) in zip(x, self._runs, strict=True)])


def _in_parts(flat: Tensor) -> Iterable[Tensor]:
    return torch.split(flat, _AT_ONCE) if flat.numel() > _AT_ONCE else [flat] * (flat.numel() > 0)


def _by_tokens(x: Tensor) -> Tensor:
    """``(batch * seq, ...)`` of ``(batch, seq, hidden)`` or ``(batch, heads, seq, k)``."""
    return (x if x.dim() == 3 else x.transpose(1, 2)).flatten(0, 1)


def _in_memory_order(x: Tensor) -> Tensor:
    """The same values with their axes as they lie in memory: what was transposed need not be copied to become flat."""
    return x.permute(sorted(range(x.dim()), key=x.stride, reverse=True))


def _runs(mask: Tensor) -> list[tuple[int, int]] | None:
    """Where the tokens of each row begin and end, for slices; None when padding stands between them."""
    counts = mask.sum(1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    starts = torch.where(mask, positions, mask.shape[1]).amin(1)
    ends = torch.where(mask, positions + 1, 0).amax(1)
    if not bool(((ends - starts == counts) | (counts == 0)).all()):
        return None
    return [(start, max(start, end)) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
