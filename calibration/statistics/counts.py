"""What was counted in the tensors of the current batch, for slots that are shown the same tensor again."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Counted", "Finding"]


@dataclass(frozen=True)
class Finding:
    """What one tensor holds.

    Args:
        lower: the smallest value.
        upper: the largest.
        count: how many values.
        width: of the bins, 0.0 without any.
        counts: how many values each bin got; None of collectors without bins.
    """

    lower: float
    upper: float
    count: int
    width: float = 0.0
    counts: Tensor | None = None


class Counted:
    """Findings by tensor: the residual, say, is the very tensor that a projection was shown before.

    Tensors are told apart by what they are, not by what they hold, and are not kept alive. One that was changed in
    place since, or for which nobody can tell (made in inference mode), is another.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], int, Finding]] = {}

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()

    def find(self, x: Tensor) -> Finding | None:
        """What was found in this very tensor."""
        reference, version, finding = self._known.get(id(x), (None, None, None))
        if reference is None or reference() is not x or x._version != version:
            return None
        return finding

    def note(self, x: Tensor, finding: Finding) -> None:
        """Remember what is in ``x``."""
        if not x.is_inference():
            key = id(x)
            self._known[key] = (weakref.ref(x, lambda _: self._known.pop(key, None)), x._version, finding)
