"""The loss of a training: a function of the model and a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from qdq.data.features import IGNORED
from qdq.errors import DataError

__all__ = ["Loss", "count_labels", "model_loss"]

Loss = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
"""Returns the loss ``()`` of a model on a batch, a mean over the labels of the batch."""


def model_loss(model: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """Return the loss that the model itself computes from the labels in the batch.

    Raises:
        DataError: If the batch has no labels for this model.
    """
    loss = _field(model(**batch), "loss")
    if loss is None:
        raise DataError(
            f"the model computes no loss from {', '.join(batch)}: batches need labels (labels, or start_positions and "
            "end_positions), or pass a loss of your own"
        )
    return loss


def count_labels(batch: Mapping[str, Tensor]) -> int:
    """Return the number of labels that a batch's loss is the mean over: the weight of the batch in a mean of means."""
    labels = batch.get("labels")
    if labels is not None and labels.dim() == 2 and not labels.is_floating_point():
        return int((labels != IGNORED).sum())
    return len(next(iter(batch.values())))


def _field(output: Any, name: str) -> Tensor | None:
    found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
    return found if isinstance(found, Tensor) else None
