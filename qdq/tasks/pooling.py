"""Combine the token vectors of a text to one vector, as sentence-transformers does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from qdq.source import Pooling

__all__ = ["Vectors", "pool"]

Vectors = NDArray[np.float32]


def pool(hidden: NDArray[Any], mask: NDArray[Any], how: Pooling) -> Vectors:
    """Return one vector ``(batch, hidden)`` for each text, without its padding.

    Args:
        hidden: Token vectors ``(batch, seq, hidden)``.
        mask: Attention mask ``(batch, seq)``; tokens with 0 do not count.
        how: ``mean`` of the tokens, ``cls`` for the first token, or ``max`` of each component.
    """
    visible = mask != 0
    if how == "cls":
        return np.take_along_axis(hidden, visible.argmax(axis=1)[:, np.newaxis, np.newaxis], axis=1)[:, 0]
    if how == "max":
        # Padding must never be the largest value.
        largest: Vectors = np.where(visible[..., np.newaxis], hidden, -np.inf).max(axis=1).astype(hidden.dtype)
        return largest
    # A product of matrices instead of a masked mean: it needs no copy of the token vectors.
    shares = visible / np.maximum(visible.sum(axis=1, keepdims=True), 1)
    mean: Vectors = np.matmul(shares[:, np.newaxis].astype(hidden.dtype), hidden)[:, 0]
    return mean
