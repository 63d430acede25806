"""How alike vectors are: the similarities of sentence-transformers, larger for vectors that are more alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from qdq.tasks.pooling import Vectors

__all__ = ["normalized", "pairwise_similarity", "similarity_matrix"]

_NORMS = {"euclidean": 2.0, "manhattan": 1.0}


def normalized(vectors: NDArray[Any]) -> Vectors:
    """Divide each vector by its length; a vector of zeros is not changed."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit


def pairwise_similarity(one: Vectors, other: Vectors, name: str) -> NDArray[Any]:
    """Return the similarity of each vector to that in the same row, ``(pairs,)``.

    Args:
        one: Vectors ``(pairs, width)``, of length 1 for ``cosine``.
        other: Vectors ``(pairs, width)``, of length 1 for ``cosine``.
        name: ``cosine``, ``dot``, or a distance (``euclidean``, ``manhattan``), whose negative is returned.
    """
    if name in _NORMS:
        distances: NDArray[Any] = np.linalg.norm(one - other, ord=_NORMS[name], axis=-1)
        return -distances
    cosines: NDArray[Any] = np.einsum("ph,ph->p", one, other)
    return cosines


def similarity_matrix(queries: Vectors, passages: Vectors, name: str) -> NDArray[Any]:
    """Return the similarity of every query to every passage, ``(queries, passages)``.

    Args:
        queries: Vectors ``(queries, width)``, of length 1 for ``cosine``.
        passages: Vectors ``(passages, width)``, of length 1 for ``cosine``.
        name: As for :func:`pairwise_similarity`.
    """
    if name in _NORMS:
        distances: NDArray[Any] = torch.cdist(
            torch.from_numpy(queries), torch.from_numpy(passages), p=_NORMS[name]
        ).numpy()
        return -distances
    return queries @ passages.T
