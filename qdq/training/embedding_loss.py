"""Losses of models that embed: for pairs of texts with a score, and for the embeddings of a teacher."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from qdq.sentence.pooling import pool

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Embedder", "cosent_loss", "embed", "embedding_loss", "pairs_loss", "sts_loss", "texts_of"]

#: The name of a pooling, or a function that makes vectors ``(texts, width)`` of token vectors and attention mask.
Embedder: TypeAlias = str | Callable[[Tensor, Tensor], Tensor]

_SCALE = 20.0  # of cosines; that of the paper and of sentence-transformers


def sts_loss(model: nn.Module, batch: Mapping[str, Tensor], *, pooling: Embedder = "mean") -> Tensor:
    """Return the :func:`cosent_loss` of the embeddings of pairs, ``()``.

    Args:
        model: A model that returns ``last_hidden_state``.
        batch: ``input_ids`` and the other inputs ``(batch, 2, seq)``, ``labels`` ``(batch,)``.
        pooling: How token vectors become one vector: the name of a pooling, or a function.

    Raises:
        ConfigError: If there is no such pooling.
    """
    texts = texts_of(batch)
    hidden = model(**texts).last_hidden_state
    return pairs_loss(embed(hidden, texts["attention_mask"], pooling), batch["labels"])


def texts_of(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs of pairs ``(batch, 2, seq)`` as rows for a model, ``(2 * batch, seq)``."""
    return {name: tensor.flatten(0, 1) for name, tensor in batch.items() if name != "labels"}


def embed(hidden: Tensor, mask: Tensor, pooling: Embedder) -> Tensor:
    """Return embeddings of length 1 in float32, ``(texts, hidden)``.

    Args:
        hidden: Token vectors, ``(texts, seq, hidden)``.
        mask: Attention mask, ``(texts, seq)``, 0 at padding.
        pooling: The name of a pooling (:func:`qdq.sentence.pooling.pool`), or a function of the two.

    Raises:
        ConfigError: If there is no such pooling.
    """
    hidden = hidden.to(torch.float32)
    vectors = pool(hidden, mask, pooling) if isinstance(pooling, str) else pooling(hidden, mask)
    return normalize(vectors, dim=-1)


def pairs_loss(embeddings: Tensor, scores: Tensor) -> Tensor:
    """Return the :func:`cosent_loss` of pairs.

    Args:
        embeddings: Embeddings of length 1, ``(2 * pairs, hidden)``; those of a pair follow each other.
        scores: ``(pairs,)``.
    """
    pairs = embeddings.view(-1, 2, embeddings.shape[-1])
    return cosent_loss((pairs[:, 0] * pairs[:, 1]).sum(-1), scores)


def cosent_loss(similarity: Tensor, score: Tensor) -> Tensor:
    """Return the CoSENT loss (Su 2022, kexue.fm/archives/8847): pairs with a higher score should be more similar.

    It is ``log(1 + sum of exp(20 * (s_i - s_j)))`` over all i, j with ``score_i < score_j``. Only the order of the
    scores counts, not their range; without two different scores the loss is 0.

    Args:
        similarity: Cosines, ``(pairs,)``.
        score: Any numbers, ``(pairs,)``.
    """
    differences = _SCALE * (similarity[:, None] - similarity[None, :])
    should_be_negative = score[:, None] < score[None, :]
    terms = differences.masked_fill(~should_be_negative, -torch.inf).flatten()
    return torch.logsumexp(torch.cat([terms.new_zeros(1), terms]), dim=0)


def embedding_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """Return ``20 * (1 - cosine)``, a mean over the texts.

    The scale is that of :func:`cosent_loss`, so that the two can be added. An index of the teacher's embeddings can
    serve a student that keeps them.

    Args:
        student: Embeddings of length 1, ``(texts, hidden)``.
        teacher: Embeddings of length 1, ``(texts, hidden)``.
    """
    return _SCALE * (1 - (student * teacher).sum(-1)).mean()
