"""What collectors hold, apart from a model: to write down, to read again, and to add up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calibration.statistics.collectors import HistogramCollector, MinMaxCollector
from calibration.statistics.tensor_file import read_tensors, unreadable, write_tensors
from calibration.statistics.token_mask import TokenMask
from qdq.errors import CalibrationError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

__all__ = ["CalibrationState", "add_up"]

FORMAT = "1"

_KINDS = {kind.kind: kind for kind in (MinMaxCollector, HistogramCollector)}


@dataclass(frozen=True)
class CalibrationState:
    """The statistics of all slots after some batches.

    Args:
        identity: what they belong to (model, method, ...), in words of the caller's own; all values are text.
        kind: of the collectors, ``min-max`` or ``histogram``.
        samples: rows of the batches that were collected.
        tokens: positions in them that count.
        slots: for each slot what its collector's ``state()`` gave.
    """

    identity: Mapping[str, str]
    kind: str
    samples: int
    tokens: int
    slots: Mapping[str, Mapping[str, Tensor]]

    def save(self, path: Path) -> None:
        """Write one safetensors file, whole at every moment.

        Raises:
            StorageError: when it cannot be written.
        """
        about = {"format": FORMAT, "kind": self.kind, "samples": self.samples, "tokens": self.tokens}
        tensors = {f"{slot}/{name}": tensor for slot, held in self.slots.items() for name, tensor in held.items()}
        write_tensors(path, tensors, {**about, "identity": dict(self.identity)})

    @classmethod
    def load(cls, path: Path) -> CalibrationState:
        """Read what :meth:`save` wrote.

        Raises:
            CalibrationError: when the file is missing, damaged, or of another kind or version.
        """
        tensors, about = read_tensors(path)
        slots: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            slot, _, name = key.rpartition("/")
            slots.setdefault(slot, {})[name] = tensor
        try:
            if about.pop("format") != FORMAT or about["kind"] not in _KINDS:
                raise ValueError("of another version")
            state = cls(slots=slots, **about)
            _check(state)
        except (KeyError, TypeError, ValueError) as error:
            raise unreadable(path, error) from error
        return state

    def differences(self, other: CalibrationState) -> list[str]:
        """What keeps two states from being added up, a line each."""
        mine, theirs = ({"collector": state.kind, **state.identity} for state in (self, other))
        problems = [
            f"{key}: {mine.get(key)} here, {theirs.get(key)} there"
            for key in dict.fromkeys([*mine, *theirs])
            if mine.get(key) != theirs.get(key)
        ]
        if missing := sorted(self.slots.keys() ^ other.slots.keys()):
            problems.append(f"slots: {len(missing)} are in one of them only ({missing[0]}, ...)")
        return problems


def _check(state: CalibrationState) -> None:
    """Refuse statistics in which something is missing or of another shape."""
    expected: dict[str, Any] = {
        name: (tensor.dtype, tensor.shape) for name, tensor in _KINDS[state.kind](TokenMask()).state().items()
    }
    for slot, held in state.slots.items():
        if {name: (tensor.dtype, tensor.shape) for name, tensor in held.items()} != expected:
            raise ValueError(f"{slot} is incomplete")


def add_up(states: Sequence[CalibrationState]) -> CalibrationState:
    """One state as if all had been collected in one run, to the bit and in whatever order.

    Raises:
        CalibrationError: when they are not of the same identity, kind and slots; all that differs is named.
    """
    if not states:
        raise CalibrationError("no statistics to add up")
    first = states[0]
    problems = [
        f"number {n}: {problem}" for n, state in enumerate(states[1:], 1) for problem in first.differences(state)
    ]
    if problems:
        raise CalibrationError(describe_problems("statistics that do not go with number 0", problems))
    slots = {}
    for slot in first.slots:
        collector = _KINDS[first.kind](TokenMask())
        for state in states:
            collector.merge(state.slots[slot])
        slots[slot] = collector.state()
    samples, tokens = sum(state.samples for state in states), sum(state.tokens for state in states)
    return CalibrationState(**{**vars(first), "samples": samples, "tokens": tokens, "slots": slots})
