"""Compute embeddings of texts; one window of texts is in memory at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from qdq.data.batches import in_order
from qdq.tasks.pooling import pool

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from qdq.data.batches import Batch
    from qdq.data.examples import Example
    from qdq.source import Pooling
    from qdq.tasks.evaluator import Evaluator
    from qdq.tasks.pooling import Vectors

__all__ = ["embed", "embed_in_batches", "embedding_settings"]


def embedding_settings(evaluator: Evaluator) -> dict[str, Any]:
    """Return how token vectors become one embedding, and the longest text in tokens."""
    model, settings = evaluator.model, evaluator.settings
    length = settings.seq_len or min(model.directory.sentence_length or model.max_length, model.max_length)
    return {"pooling": settings.pooling or model.directory.pooling, "seq_len": length}


def embed(evaluator: Evaluator, texts: Iterable[Example], *, rows_per_example: int = 1) -> Iterator[Vectors]:
    """Yield embeddings ``(hidden,)`` of length 1 in the order of the texts, whose indices count from 0."""
    batches = embed_in_batches(evaluator, texts, rows_per_example=rows_per_example)
    rows = (
        (index, vector)
        for batch, vectors in batches
        for index, vector in zip(batch.index.tolist(), vectors, strict=True)
    )
    return in_order(rows)


def embed_in_batches(
    evaluator: Evaluator, texts: Iterable[Example], *, rows_per_example: int = 1
) -> Iterator[tuple[Batch, Vectors]]:
    """Yield batches of texts of similar length with their embeddings ``(batch, hidden)`` of length 1."""
    settings = embedding_settings(evaluator)
    batches = evaluator.batches(texts, "feature-extraction", max_length=settings["seq_len"])
    for batch, outputs in evaluator.outputs(batches, rows_per_example=rows_per_example):
        yield (
            batch,
            normalized(_pooled(batch, outputs, settings["pooling"], is_chosen=evaluator.settings.pooling is not None)),
        )


def normalized(vectors: NDArray[Any]) -> Vectors:
    """Divide each vector by its length; a vector of zeros is not changed."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit


def _pooled(batch: Batch, outputs: dict[str, NDArray[Any]], how: Pooling, *, is_chosen: bool) -> NDArray[Any]:
    """Return the model's own sentence embedding, unless a pooling is chosen and the model gives token vectors."""
    if "sentence_embedding" in outputs and not (is_chosen and "last_hidden_state" in outputs):
        return outputs["sentence_embedding"]
    return pool(outputs["last_hidden_state"], batch["attention_mask"].numpy(), how)
