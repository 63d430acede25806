"""Embeddings of texts, in the order of the texts, a window of them in memory at a time."""

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
    from qdq.tasks.pooling import Vectors
    from qdq.tasks.scoring import Job

__all__ = ["embed", "embed_in_batches", "embedding_settings"]


def embedding_settings(job: Job) -> dict[str, Any]:
    """How token vectors become one, and the longest text."""
    subject, settings = job.subject, job.settings
    length = settings.seq_len or min(subject.directory.sentence_length or subject.max_length, subject.max_length)
    return {"pooling": settings.pooling or subject.directory.pooling, "seq_len": length}


def embed(job: Job, texts: Iterable[Example], *, rows_per_example: int = 1) -> Iterator[Vectors]:
    """Embeddings ``(hidden,)`` of length 1, in the order of the texts, whose indices count from 0."""
    batches = embed_in_batches(job, texts, rows_per_example=rows_per_example)
    rows = (
        (index, vector)
        for batch, vectors in batches
        for index, vector in zip(batch.index.tolist(), vectors, strict=True)
    )
    return in_order(rows)


def embed_in_batches(
    job: Job, texts: Iterable[Example], *, rows_per_example: int = 1
) -> Iterator[tuple[Batch, Vectors]]:
    """Batches, which are ordered by length, with embeddings ``(batch, hidden)`` of length 1."""
    settings = embedding_settings(job)
    batches = job.batches(texts, "feature-extraction", max_length=settings["seq_len"])
    for batch, outputs in job.run(batches, rows_per_example=rows_per_example):
        yield (
            batch,
            normalized(_pooled(batch, outputs, settings["pooling"], is_chosen=job.settings.pooling is not None)),
        )


def normalized(vectors: NDArray[Any]) -> Vectors:
    """Each vector divided by its length; a vector of zeros stays what it is."""
    lengths = np.linalg.norm(vectors, axis=-1, keepdims=True)
    unit: Vectors = vectors / np.maximum(lengths, np.finfo(np.float32).tiny)
    return unit


def _pooled(batch: Batch, outputs: dict[str, NDArray[Any]], how: Pooling, *, is_chosen: bool) -> NDArray[Any]:
    """What the model has pooled itself, unless another pooling is asked for and possible."""
    if "sentence_embedding" in outputs and not (is_chosen and "last_hidden_state" in outputs):
        return outputs["sentence_embedding"]
    return pool(outputs["last_hidden_state"], batch["attention_mask"].numpy(), how)
