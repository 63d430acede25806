"""Losses of models that embed: for pairs of texts with a score, and for the embeddings of a teacher."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["cosent_loss", "embed", "embedding_loss", "pairs_loss", "sts_loss", "texts_of"]

_SCALE = 20.0  # of cosines; that of the paper and of sentence-transformers


def sts_loss(model: nn.Module, batch: Mapping[str, Tensor], *, pooling: str = "mean") -> Tensor:
    """Return the :func:`cosent_loss` of the embeddings of pairs, ``()``.

    Args:
        model: A model that returns ``last_hidden_state``.
        batch: ``input_ids`` and the other inputs ``(batch, 2, seq)``, ``labels`` ``(batch,)``.
        pooling: How token vectors become one vector: ``mean``, ``cls`` or ``max``.

    Raises:
        ConfigError: If the pooling is another one.
    """
    texts = texts_of(batch)
    hidden = model(**texts).last_hidden_state
    return pairs_loss(embed(hidden, texts["attention_mask"], pooling), batch["labels"])


def texts_of(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the inputs of pairs ``(batch, 2, seq)`` as rows for a model, ``(2 * batch, seq)``."""
    return {name: tensor.flatten(0, 1) for name, tensor in batch.items() if name != "labels"}


def embed(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Return embeddings of length 1 in float32, ``(texts, hidden)``.

    Args:
        hidden: Token vectors, ``(texts, seq, hidden)``.
        mask: Attention mask, ``(texts, seq)``, 0 at padding.
        pooling: ``mean``, ``cls`` or ``max``.

    Raises:
        ConfigError: If the pooling is another one.
    """
    hidden = hidden.to(torch.float32)
    return normalize(_pooled(hidden, mask, pooling), dim=-1)


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


def _pooled(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    if pooling == "cls":
        return hidden[:, 0]
    seen = mask[..., None].to(hidden.dtype)
    if pooling == "mean":
        return (hidden * seen).sum(1) / seen.sum(1).clamp_min(1e-9)
    if pooling == "max":
        return hidden.masked_fill(seen == 0, torch.finfo(hidden.dtype).min).amax(1)
    raise ConfigError(f"pooling is {pooling!r}, must be one of mean, cls, max")
