"""Rows of different lengths -> one array."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["padded", "padded_length"]


def padded(rows: Sequence[Sequence[int] | np.ndarray], length: int, fill: int) -> np.ndarray:
    """An int64 array ``(rows, length, ...)``: each row from its beginning, ``fill`` behind its end."""
    inner = np.shape(rows[0])[1:] if len(rows) else ()
    array = np.full((len(rows), length, *inner), fill, dtype=np.int64)
    for place, row in zip(array, rows, strict=True):
        place[: len(row)] = row
    return array


def padded_length(longest: int, *, pad_to: int | None, multiple_of: int | None, limit: int | None) -> int:
    """The length of a batch: ``pad_to``, or its longest row, rounded up to a multiple but not beyond ``limit``."""
    if pad_to is not None:
        return pad_to
    if multiple_of is None:
        return longest
    rounded = -(-longest // multiple_of) * multiple_of
    return max(longest, min(rounded, limit)) if limit is not None else rounded
