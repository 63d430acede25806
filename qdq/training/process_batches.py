"""The batches of every epoch that one process trains on, from any kind of loader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from qdq.errors import ConfigError, DataError
from qdq.training.loss import count_labels

if TYPE_CHECKING:
    from torch import Tensor

    from qdq.training.accelerator import TrainingAccelerator
    from qdq.training.settings import TrainingSettings

__all__ = ["Loader", "ProcessBatches", "count_steps", "rows_of_process"]

Loader = Iterable[Mapping[str, Any]] | Callable[[int], Iterable[Mapping[str, Any]]]
"""Batches: a DataLoader, a list, or a function that returns the batches of an epoch (0 for the first)."""


class ProcessBatches:
    """The batches of every epoch for this process.

    With several processes, accelerate distributes the batches of a DataLoader; the batches of any other loader are
    split by rows.

    Args:
        loader: See :data:`Loader`.
        accelerator: Accelerator of this process.

    Attributes:
        length: Number of batches of an epoch; None where the loader does not say.

    Raises:
        ConfigError: If the loader can be read only once.
        DataError: If the loader is empty.
    """

    def __init__(self, loader: Any, accelerator: TrainingAccelerator) -> None:
        self._count = accelerator.num_processes
        self._rank = accelerator.process_index
        self._loader = loader
        if self._count > 1 and isinstance(loader, torch.utils.data.DataLoader):
            self._loader, self._count, self._rank = accelerator.prepare(loader), 1, 0
        self.length: int | None = len(loader) if hasattr(loader, "__len__") else None
        if hasattr(self._loader, "__len__"):
            self.length = len(self._loader)
        if self.length == 0:
            raise DataError("there is no batch to train on")
        # A generator would be empty in the second epoch, and when a resumed training makes its batches again.
        if not callable(loader) and iter(loader) is loader:
            raise ConfigError("batches come from an iterator, which can be read once: pass a list or a DataLoader")

    def __call__(self, epoch: int) -> Iterator[tuple[Any, int]]:
        """Yield the batches of an epoch, each with the number of its labels; 0 for a batch that must not count."""
        # Loaders of accelerate shuffle by the number of the epoch.
        if hasattr(self._loader, "set_epoch"):
            self._loader.set_epoch(epoch)
        source = self._loader(epoch) if callable(self._loader) else self._loader
        for batch in source:
            if not isinstance(batch, Mapping):
                raise DataError(
                    f"a batch is a {type(batch).__name__}, must be a mapping of the model's arguments to tensors"
                )
            rows, counts = rows_of_process(batch, self._rank, self._count)
            yield rows, count_labels(rows) if counts else 0


def rows_of_process(batch: Mapping[str, Tensor], rank: int, count: int) -> tuple[dict[str, Tensor], bool]:
    """Return the rows of a batch for process ``rank`` of ``count``, and whether they count in the loss.

    A process without a row gets the first one, which does not count: all processes must compute gradients together.
    """
    if count == 1:
        return dict(batch), True
    rows = {name: tensor[rank::count] for name, tensor in batch.items()}
    if len(next(iter(rows.values()))):
        return rows, True
    return {name: tensor[:1] for name, tensor in batch.items()}, False


def count_steps(batches: int | None, settings: TrainingSettings) -> tuple[int | None, int]:
    """Return the number of steps in an epoch, None where it is unknown, and in the whole training.

    Args:
        batches: Number of batches of an epoch; None where the loader does not say.
        settings: Settings of the training.

    Raises:
        ConfigError: If neither the loader nor the settings say when to end.
    """
    per_epoch = None if batches is None else -(-batches // settings.accumulation)
    if per_epoch is None and settings.max_steps is None:
        raise ConfigError("the loader does not say how many batches it has: set max_steps")
    total = settings.max_steps if per_epoch is None else per_epoch * settings.epochs
    assert total is not None
    return per_epoch, total if settings.max_steps is None else min(total, settings.max_steps)
