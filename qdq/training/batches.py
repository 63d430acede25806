"""A loader, of whatever kind, as the batches of every epoch that are for this process."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from qdq.errors import ConfigError, DataError
from qdq.training.data import part_of
from qdq.training.objective import weight_of

if TYPE_CHECKING:
    from qdq.training.launch import Launch
    from qdq.training.settings import TrainingSettings

__all__ = ["EpochBatches", "Loader", "lengths"]

Loader = Iterable[Mapping[str, Any]] | Callable[[int], Iterable[Mapping[str, Any]]]
"""Batches: a DataLoader or a list, or what gives those of an epoch (0 the first)."""


class EpochBatches:
    """The batches of every epoch, those of this process.

    Args:
        loader: see :data:`Loader`. accelerate shares a DataLoader out to several processes; anything else is shared by
            rows.
        launch: the processes.

    Attributes:
        length: batches of an epoch; None where the loader does not say.

    Raises:
        ConfigError: the loader can be read only once.
        DataError: it is empty.
    """

    def __init__(self, loader: Any, launch: Launch) -> None:
        self._count = launch.num_processes
        self._rank = launch.process_index
        self._loader = loader
        if self._count > 1 and isinstance(loader, torch.utils.data.DataLoader):
            self._loader, self._count, self._rank = launch.prepare(loader), 1, 0
        self.length: int | None = len(loader) if hasattr(loader, "__len__") else None
        if hasattr(self._loader, "__len__"):
            self.length = len(self._loader)
        if self.length == 0:
            raise DataError("there is no batch to train on")
        if not callable(loader) and iter(loader) is loader:
            raise ConfigError("batches come from an iterator, which can be read once: give a list or a DataLoader")

    def __call__(self, epoch: int) -> Iterator[tuple[Any, int]]:
        """The batches of an epoch, with the number of labels in each; 0 for one that does not count."""
        if hasattr(self._loader, "set_epoch"):
            self._loader.set_epoch(epoch)
        source = self._loader(epoch) if callable(self._loader) else self._loader
        for batch in source:
            if not isinstance(batch, Mapping):
                raise DataError(
                    f"a batch is a {type(batch).__name__}, must be a mapping of the model's arguments to tensors"
                )
            part, counts = part_of(batch, self._rank, self._count)
            yield part, weight_of(part) if counts else 0


def lengths(batches: int | None, settings: TrainingSettings) -> tuple[int | None, int]:
    """Steps of an epoch of ``batches``, None where nobody knows, and of all epochs.

    Raises:
        ConfigError: there is no telling how many steps there are.
    """
    per_epoch = None if batches is None else -(-batches // settings.accumulation)
    if per_epoch is None and settings.max_steps is None:
        raise ConfigError("the loader does not say how many batches it has: give max_steps")
    total = settings.max_steps if per_epoch is None else per_epoch * settings.epochs
    assert total is not None
    return per_epoch, total if settings.max_steps is None else min(total, settings.max_steps)
