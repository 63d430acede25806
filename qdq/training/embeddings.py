"""Losses of models that embed: of pairs with a score, and of embeddings that shall be those of another model."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from qdq.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["cosent", "embed", "embedding_loss", "pairs_loss", "sts_loss", "texts_of"]

_SHARPNESS = 20.0


def sts_loss(model: nn.Module, batch: Mapping[str, Tensor], *, pooling: str = "mean") -> Tensor:
    """:func:`cosent` of the embeddings of pairs.

    Args:
        model: gives ``last_hidden_state``.
        batch: ``input_ids`` and its like ``(batch, 2, seq)``, ``labels`` ``(batch,)``.
        pooling: how token vectors become one: ``mean``, ``cls`` or ``max``.
    """
    texts = texts_of(batch)
    hidden = model(**texts).last_hidden_state
    return pairs_loss(embed(hidden, texts["attention_mask"], pooling), batch["labels"])


def texts_of(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The texts of pairs one below the other, ``(2 * batch, seq)``: what a model takes."""
    return {name: tensor.flatten(0, 1) for name, tensor in batch.items() if name != "labels"}


def embed(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Embeddings of length 1, float32, ``(texts, hidden)``.

    Args:
        hidden: ``(texts, seq, hidden)``.
        mask: ``(texts, seq)``, 0 at padding.
        pooling: ``mean``, ``cls`` or ``max``.

    Raises:
        ConfigError: another pooling.
    """
    hidden = hidden.to(torch.float32)
    return normalize(_pooled(hidden, mask, pooling), dim=-1)


def pairs_loss(embeddings: Tensor, scores: Tensor) -> Tensor:
    """:func:`cosent` of embeddings ``(2 * pairs, hidden)`` of length 1, the two of a pair one after the other."""
    pairs = embeddings.view(-1, 2, embeddings.shape[-1])
    return cosent((pairs[:, 0] * pairs[:, 1]).sum(-1), scores)


def cosent(similarity: Tensor, score: Tensor) -> Tensor:
    """The CoSENT loss (Su 2022, kexue.fm/archives/8847): a pair that people score higher shall be more similar.

    ``log(1 + sum of exp(20 * (s_i - s_j)))`` over all i, j with ``score_i < score_j``. Only the order of the scores
    counts, so that their range does not matter; without two different scores the loss is 0.

    Args:
        similarity: ``(pairs,)``, cosines.
        score: ``(pairs,)``, any numbers.
    """
    differences = _SHARPNESS * (similarity[:, None] - similarity[None, :])
    is_wrong_way = score[:, None] < score[None, :]
    ordered = differences.masked_fill(~is_wrong_way, -torch.inf).flatten()
    return torch.logsumexp(torch.cat([ordered.new_zeros(1), ordered]), dim=0)


def embedding_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """``20 * (1 - cosine)``, a mean over the texts: in the unit of :func:`cosent`, so that the two can be added.

    Embeddings that stay where they are can be compared with those of the teacher, an index of them stays valid.

    Args:
        student: ``(texts, hidden)``, of length 1.
        teacher: likewise.
    """
    return _SHARPNESS * (1 - (student * teacher).sum(-1)).mean()


def _pooled(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    if pooling == "cls":
        return hidden[:, 0]
    seen = mask[..., None].to(hidden.dtype)
    if pooling == "mean":
        return (hidden * seen).sum(1) / seen.sum(1).clamp_min(1e-9)
    if pooling == "max":
        return hidden.masked_fill(seen == 0, torch.finfo(hidden.dtype).min).amax(1)
    raise ConfigError(f"the pooling {pooling!r} cannot be trained, it must be mean, cls or max")
