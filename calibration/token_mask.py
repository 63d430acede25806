"""Which values of a batch are data, and which are padding."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["TokenMask"]


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
        mask = self._mask
        if mask is None or x.dim() not in (3, 4) or (x.shape[0], x.shape[-2]) != mask.shape:
            return x  # case 4
        if self._keys and x.dim() == 4 and x.shape[-1] == x.shape[-2]:  # case 3
            if self._runs is None:
                return x.masked_select(mask[:, None, :, None] & mask[:, None, None, :])
            return torch.cat([row[:, a:b, a:b].reshape(-1) for row, (a, b) in zip(x, self._runs, strict=True)])
        return (x if x.dim() == 3 else x.transpose(1, 2)).flatten(0, 1).index_select(0, self._rows)


def _runs(mask: Tensor) -> list[tuple[int, int]] | None:
    """Where the tokens of each row begin and end, for slices; None when padding stands between them."""
    counts = mask.sum(1)
    positions = torch.arange(mask.shape[1], device=mask.device)
    starts = torch.where(mask, positions, mask.shape[1]).amin(1)
    ends = torch.where(mask, positions + 1, 0).amax(1)
    if not bool(((ends - starts == counts) | (counts == 0)).all()):
        return None
    return [(start, max(start, end)) for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]
