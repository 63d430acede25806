"""Statistics apart from a model: save them, load them, and merge those of several runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calibration.statistics.collectors import HistogramCollector, MinMaxCollector
from calibration.statistics.tensor_file import read_tensors, unreadable, write_tensors
from calibration.statistics.token_mask import TokenMask
from qdq.errors import CalibrationError, describe_problems, differences
from qdq.storage import check_replaceable_file

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from torch import Tensor

__all__ = ["SavedStatistics", "merge_statistics"]

FORMAT = "1"

_KINDS = {kind.kind: kind for kind in (MinMaxCollector, HistogramCollector)}


@dataclass(frozen=True)
class SavedStatistics:
    """The statistics of all slots after some batches.

    Args:
        identity: What the statistics belong to (model, method and so on). All values are text that the caller chooses.
        kind: The kind of the collectors, ``min-max`` or ``histogram``.
        samples: The number of rows in the batches.
        tokens: The number of positions in them that the attention mask does not exclude.
        slots: The ``state()`` of the collector of each slot.
    """

    identity: Mapping[str, str]
    kind: str
    samples: int
    tokens: int
    slots: Mapping[str, Mapping[str, Tensor]]

    def save(self, path: Path) -> None:
        """Write one safetensors file, which is whole at every moment. An earlier file with statistics is replaced.

        Raises:
            ConfigError: Something else is in the way.
            StorageError: The file cannot be written.
        """
        check_replaceable_file(path, "statistics")
        about = {"format": FORMAT, "kind": self.kind, "samples": self.samples, "tokens": self.tokens}
        tensors = {f"{slot}/{name}": tensor for slot, state in self.slots.items() for name, tensor in state.items()}
        write_tensors(path, tensors, {**about, "identity": dict(self.identity)})

    @classmethod
    def load(cls, path: Path) -> SavedStatistics:
        """Read a file that :meth:`save` wrote.

        Raises:
            CalibrationError: The file is missing, damaged, or of another kind or version.
        """
        tensors, about = read_tensors(path)
        slots: dict[str, dict[str, Tensor]] = {}
        for key, tensor in tensors.items():
            # Names of slots contain dots but no slashes.
            slot, _, name = key.rpartition("/")
            slots.setdefault(slot, {})[name] = tensor
        try:
            if about.pop("format") != FORMAT or about["kind"] not in _KINDS:
                raise ValueError("of another version")
            statistics = cls(slots=slots, **about)
            _check_complete(statistics)
        except (KeyError, TypeError, ValueError) as error:
            raise unreadable(path, error) from error
        return statistics

    def differences(self, other: SavedStatistics) -> list[str]:
        """Return the reasons why two statistics cannot be merged, one line each."""
        mine, theirs = ({"collector": one.kind, **one.identity} for one in (self, other))
        problems = differences(theirs, mine)
        if missing := sorted(self.slots.keys() ^ other.slots.keys()):
            problems.append(f"slots: {len(missing)} are in only one of them ({missing[0]}, ...)")
        return problems


def merge_statistics(statistics: Sequence[SavedStatistics]) -> SavedStatistics:
    """Return statistics equal to the bit to those of one run over all the data. The order does not matter.

    Raises:
        CalibrationError: They are not of the same identity, kind and slots. All differences are named.
    """
    if not statistics:
        raise CalibrationError("there are no statistics to merge")
    first = statistics[0]
    problems = [
        f"number {n}: {problem}" for n, other in enumerate(statistics[1:], 1) for problem in first.differences(other)
    ]
    if problems:
        raise CalibrationError(describe_problems("statistics that do not match number 0", problems))
    # Collectors merge exactly, so the sum does not depend on the order.
    slots = {}
    for slot in first.slots:
        collector = _KINDS[first.kind](TokenMask())
        for one in statistics:
            collector.merge(one.slots[slot])
        slots[slot] = collector.state()
    samples, tokens = sum(one.samples for one in statistics), sum(one.tokens for one in statistics)
    return SavedStatistics(**{**vars(first), "samples": samples, "tokens": tokens, "slots": slots})


def _check_complete(statistics: SavedStatistics) -> None:
    """Raise a ValueError if something is missing or of another shape."""
    expected: dict[str, Any] = {
        name: (tensor.dtype, tensor.shape) for name, tensor in _KINDS[statistics.kind](TokenMask()).state().items()
    }
    for slot, state in statistics.slots.items():
        if {name: (tensor.dtype, tensor.shape) for name, tensor in state.items()} != expected:
            raise ValueError(f"{slot} is incomplete")
