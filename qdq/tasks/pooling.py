"""Combine the token vectors of a text to one vector, as sentence-transformers does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from qdq.sentence import pooling

if TYPE_CHECKING:
    from qdq.source import Pooling

__all__ = ["Vectors", "pool"]

Vectors = NDArray[np.float32]


def pool(hidden: NDArray[Any], mask: NDArray[Any], how: Pooling) -> Vectors:
    """Return one vector ``(batch, hidden)`` for each text, without its padding.

    Args:
        hidden: Token vectors ``(batch, seq, hidden)``.
        mask: Attention mask ``(batch, seq)``; tokens with 0 do not count.
        how: The name of the pooling, see :func:`qdq.sentence.pooling.pool`.
    """
    found: Vectors = pooling.pool(torch.from_numpy(hidden), torch.from_numpy(mask), how).numpy()
    return found
