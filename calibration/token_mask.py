"""Which values of a batch are data, and which are padding."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["TokenMask"]

_AT_ONCE = 2**17  # values that fit a cache, and bound the memory for what is computed from them


class TokenMask:
    """Which positions of the current batch hold real tokens; the collectors of a run share one.

    Args:
        keys: for attention weights ``(batch, heads, seq, seq)``, whose last axis is positions too: what is said to
            padding, nothing, is no more data than what padding says.
    """

    def __init__(self, *, keys: bool = False) -> None:
        self._keys = keys
        self._mask: Tensor | None = None
        self._rows = torch.empty(0, dtype=torch.long)
        self._runs: list[tuple[int, int]] | None = None

    def set(self, attention_mask: Tensor | None) -> None:
        """Take the mask of the next batch, ``(batch, seq)``, 1 for tokens; a mask without padding costs nothing."""
        mask = None if attention_mask is None else attention_mask.reshape(-1, attention_mask.shape[-1]) != 0
        self._mask = None if mask is None or bool(mask.all()) else mask
        if self._mask is not None:
            self._rows = self._mask.flatten().nonzero().squeeze(1)
            self._runs = _runs(self._mask) if self._keys else None

    def select(self, x: Tensor) -> Tensor:
        """The values of ``x`` that belong to tokens.

        By the shape of ``x``: (1) ``(batch, seq, hidden)`` and (2) ``(batch, heads, seq, k)`` lose their padding
        positions, (3) ``(batch, heads, seq, seq)`` on both axes where ``keys`` is set; (4) anything else, a pooled
        vector say, has none and is taken whole.
        """
        parts = list(self._select(x))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def parts(self, x: Tensor) -> Iterator[Tensor]:
        """What :meth:`select` gives, in parts of a size that is quickly gone through; none is empty."""
        for values in self._select(x, _AT_ONCE):
            if values.numel() <= _AT_ONCE:
                if values.numel():
                    yield values
                continue
            yield from torch.split(values.reshape(-1), _AT_ONCE)

    def _select(self, x: Tensor, at_once: int = 2**62) -> Iterator[Tensor]:
        mask = self._mask
        if mask is None or x.dim() not in (3, 4) or (x.shape[0], x.shape[-2]) != mask.shape:
            yield x  # case 4
        elif self._keys and x.dim() == 4 and x.shape[-1] == x.shape[-2]:  # case 3
            if self._runs is None:
                yield x.masked_select(mask[:, None, :, None] & mask[:, None, None, :])
            else:
                yield torch.cat([row[:, a:b, a:b].reshape(-1) for row, (a, b) in zip(x, self._runs, strict=True)])
        else:
            tokens = (x if x.dim() == 3 else x.transpose(1, 2)).flatten(0, 1)
            size = max(at_once // max(tokens[0].numel(), 1), 1)
            for rows in torch.split(self._rows, size):
                yield tokens.index_select(0, rows)


def _runs(mask: Tensor) -> list[tuple[int, int]] | None:
    """Where the tokens of each row begin and end, for slices; None when padding stands between them."""
    counts = mask.sum(1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    starts = torch.where(mask, positions, mask.shape[1]).amin(1)
    ends = torch.where(mask, positions + 1, 0).amax(1)
    if not bool(((ends - starts == counts) | (counts == 0)).all()):
        return None
    return [(start, max(start, end)) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
