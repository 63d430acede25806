"""All that a training goes on from, on disk: what was killed at any step ends as if nothing had happened.

A state is a directory, ``state.pt`` and a log, that appears whole or not at all. It is read without running code.
"""

from __future__ import annotations

import pickle
import random
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qdq.errors import CheckpointError, StorageError, TrainingError
from qdq.quantization.quantizer import Range, quantizers
from qdq.storage import atomic_directory, resume_mismatch

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

__all__ = ["Position", "Store", "get_random", "ranges_of", "set_random", "set_ranges"]

FORMAT = 1
STATE_FILE = "state.pt"
KIND = "training"


@dataclass
class Position:
    """How far a training has come.

    Args:
        step: steps done.
        epoch: the one that is being done, 0 the first.
        batches: of that epoch that were done.
        best: the metric of the best evaluation; None before the first.
        best_step: when that was.
        waited: evaluations since then.
        stopped: whether it ended before its last step, for want of progress.
        losses: sum and number of those since the last row of the log.
        history: the metrics of every evaluation, with its step.
    """

    step: int = 0
    epoch: int = 0
    batches: int = 0
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    stopped: bool = False
    losses: tuple[float, int] = (0.0, 0)
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Store:
    """Where a state lies, and what it belongs to.

    Args:
        folder: of the state; made when it is first written.
        identity: what has to be the same for a training to go on; all values are text.
    """

    folder: Path
    identity: Mapping[str, str]

    @property
    def is_there(self) -> bool:
        """Whether there is a state."""
        return (self.folder / STATE_FILE).is_file()

    def write(self, state: Mapping[str, Any], log: str) -> None:
        """Put a state in the place of the one before.

        Raises:
            ConfigError: something that is not ours is in the way.
            StorageError: it cannot be written.
        """
        with atomic_directory(self.folder, kind=KIND) as folder:
            torch.save({"format": FORMAT, "identity": dict(self.identity), **state}, folder / STATE_FILE)
            (folder / "log.csv").write_text(log, encoding="utf-8")

    def read(self) -> dict[str, Any]:
        """What :meth:`write` wrote last; tensors on the CPU.

        Raises:
            CheckpointError: it is damaged.
            TrainingError: it belongs to another training; all that differs is named.
        """
        path = self.folder / STATE_FILE
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
            theirs = dict(state["identity"])
            if state["format"] != FORMAT:
                raise ValueError(f"format {state['format']}, where this version knows {FORMAT}")
        except OSError as error:
            raise StorageError(f"{path}: {error.strerror or error}") from error
        except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{path}: damaged or of another version ({error}); train without resuming") from error
        if problem := resume_mismatch(self.folder, theirs, self.identity, what="training"):
            raise TrainingError(problem)
        return dict(state)

    def read_log(self) -> str:
        """The log that lies beside the state."""
        try:
            return (self.folder / "log.csv").read_text(encoding="utf-8")
        except OSError as error:
            raise StorageError(f"{self.folder / 'log.csv'}: {error.strerror or error}") from error

    def remove(self) -> None:
        """Remove the state, once it is needed no more."""
        for name in (STATE_FILE, "log.csv", ".qdq.json"):
            (self.folder / name).unlink(missing_ok=True)
        if self.folder.is_dir() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def get_random(device: torch.device) -> dict[str, Any]:
    """The states of all generators that a training draws from, as plain values and tensors."""
    name, keys, position, has_gauss, gauss = np.random.get_state()
    version, numbers, following = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ],
        "python": [version, list(numbers), following],
    }
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random(state: Mapping[str, Any], device: torch.device) -> None:
    """Put the generators into the states that :func:`get_random` found."""
    torch.set_rng_state(state["torch"])
    name, keys, position, has_gauss, gauss = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    version, numbers, following = state["python"]
    random.setstate((version, tuple(numbers), following))
    if "cuda" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def ranges_of(model: nn.Module) -> dict[str, list[torch.Tensor]]:
    """The ranges of all quantizers by name; a state dict does not hold them."""
    return {name: [q.range.lower, q.range.upper, q.range.amax] for name, q in quantizers(model) if q.range is not None}


def set_ranges(model: nn.Module, ranges: Mapping[str, list[torch.Tensor]]) -> None:
    """Put back what :func:`ranges_of` found; scales stay as they are."""
    for name, quantizer in quantizers(model):
        place = next(iter([*quantizer.parameters(), *quantizer.buffers()]), torch.empty(0)).device
        quantizer.range = Range(*(part.to(place) for part in ranges[name])) if name in ranges else None
