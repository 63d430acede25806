"""What is minimised: losses as functions of a model and a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from qdq.data.features import IGNORED
from qdq.errors import DataError

__all__ = ["Loss", "model_loss", "weight_of"]

Loss = Callable[[nn.Module, Mapping[str, Tensor]], Tensor]
"""The loss ``()`` of a model on a batch, a mean over what counts in it."""


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


def weight_of(batch: Mapping[str, Tensor]) -> int:
    """How many labels the mean of a batch's loss is over: by these, means of several batches add up to one mean."""
    labels = batch.get("labels")
    if labels is not None and labels.dim() == 2 and not labels.is_floating_point():
        return int((labels != IGNORED).sum())
    return len(next(iter(batch.values())))


def _field(output: Any, name: str) -> Tensor | None:
    found = output.get(name) if isinstance(output, Mapping) else getattr(output, name, None)
    return found if isinstance(found, Tensor) else None
