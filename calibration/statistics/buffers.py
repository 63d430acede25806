"""Memory for what is computed from a small part of a tensor and looked at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Scratch"]


class Scratch:
    """A buffer per purpose, overwritten by each part: it stays in the processor's cache."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def take(self, purpose: str, count: int, like: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        """``(count,)`` elements where ``like`` is, of any value; what was taken for this purpose before is gone."""
        key = purpose, like.device, dtype or like.dtype
        held = self._held.get(key)
        if held is None or held.shape[0] < count:
            held = self._held[key] = torch.empty(count, device=key[1], dtype=key[2])
        return held[:count]
