"""What is minimised: losses as functions of a model and a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qdq.data.features import IGNORED
from qdq.errors import ConfigError, DataError

__all__ = ["Loss", "cosent", "model_loss", "sts_loss", "weight_of"]

Loss = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
"""The loss ``()`` of a model on a batch, a mean over what counts in it."""

_SHARPNESS = 20.0


def model_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The loss that the model computes itself from the labels in the batch.

    Raises:
        DataError: the batch has no labels for this model.
    """
    loss = _field(model(**batch), "loss")
    if loss is None:
        raise DataError(
            f"the model computes no loss from {', '.join(batch)}: batches need labels (labels, or start_positions and "
            "end_positions), or give a loss of your own"
        )
    return loss


def sts_loss(model: nn.Module, batch: Mapping[str, Tensor], *, pooling: str = "mean") -> Tensor:
    """:func:`cosent` of the embeddings of pairs.

    Args:
        model: gives ``last_hidden_state``.
        batch: ``input_ids`` and its like ``(batch, 2, seq)``, ``labels`` ``(batch,)``.
        pooling: how token vectors become one: ``mean``, ``cls`` or ``max``.
    """
    texts = {name: tensor.flatten(0, 1) for name, tensor in batch.items() if name != "labels"}
    hidden = model(**texts).last_hidden_state.to(torch.float32)
    vectors = nn.functional.normalize(_pooled(hidden, texts["attention_mask"], pooling), dim=-1)
    pairs = vectors.view(-1, 2, vectors.shape[-1])
    return cosent((pairs[:, 0] * pairs[:, 1]).sum(-1), batch["labels"])


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


def weight_of(batch: Mapping[str, Tensor]) -> int:
    """How many labels the mean of a batch's loss is over: by these, means of several batches add up to one mean."""
    labels = batch.get("labels")
    if labels is not None and labels.dim() == 2 and not labels.is_floating_point():
        return int((labels != IGNORED).sum())
    return len(next(iter(batch.values())))


def _pooled(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    if pooling == "cls":
        return hidden[:, 0]
    seen = mask[..., None].to(hidden.dtype)
    if pooling == "mean":
        return (hidden * seen).sum(1) / seen.sum(1).clamp_min(1e-9)
    if pooling == "max":
        return hidden.masked_fill(seen == 0, torch.finfo(hidden.dtype).min).amax(1)
    raise ConfigError(f"the pooling {pooling!r} cannot be trained, it must be mean, cls or max")


def _field(output: Any, name: str) -> Tensor | None:
    found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
    return found if isinstance(found, Tensor) else None
