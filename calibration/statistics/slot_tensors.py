"""What slots have collected at one moment, as tensors, and back."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Protocol

import torch

from calibration.forward import Seen
from calibration.resume_file import damaged

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor

    from calibration.resume_file import Entry
    from calibration.statistics.collectors import Collector
    from calibration.statistics.growth import Growth

__all__ = ["restored", "snapshot"]

_RISES = "rises"


class Watched(Protocol):
    """A slot and what is known of it."""

    name: str
    collector: Collector
    growth: Growth


def snapshot(watched: Iterable[Watched]) -> Callable[[], dict[str, Tensor]]:
    """The state of this moment, to be asked for at any later one.

    Returns:
        A function that gives, for each slot, what its collector's ``state()`` gave, and ``rises`` float64 ``(n, 2)``.
    """
    held = [(slot.name, copy.copy(slot.collector), list(slot.growth.rises)) for slot in watched]

    def tensors() -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, collector, rises in held:
            found |= {f"{name}/{key}": tensor for key, tensor in collector.state().items()}
            found[f"{name}/{_RISES}"] = torch.tensor(rises, dtype=torch.float64).reshape(-1, 2)
        return found

    return tensors


def restored(watched: Iterable[Watched], entry: Entry) -> Seen:
    """Give fresh slots what an entry holds, and say what data that was.

    Raises:
        CalibrationError: when something is missing or of another shape.
    """
    try:
        seen = Seen(**entry.seen)
        for slot in watched:
            state = {name: entry.tensors[f"{slot.name}/{name}"] for name in slot.collector.state()}
            _check(state, slot.collector.state())
            slot.collector.merge(state)
            rises = entry.tensors[f"{slot.name}/{_RISES}"].reshape(-1, 2).tolist()
            slot.growth.rises = [(int(samples), amax) for samples, amax in rises]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(entry, error) from error
    return seen


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, tensor in expected.items():
        if (state[name].dtype, state[name].shape) != (tensor.dtype, tensor.shape):
            raise ValueError(f"{name} is of another type or shape")
