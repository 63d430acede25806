"""How far a calibration has come, on disk: what was interrupted goes on from there.

A calibration has stages, each with a file of its own in the resume_file's folder, for every process one:
``<stage>-<rank>-of-<count>.safetensors``. A file says what it belongs to (model, recipe, data, ...), how many batches
were done, and holds the statistics after them.
"""

from __future__ import annotations

import logging
import re
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from calibration.distributed import WHOLE
from calibration.statistics.tensor_file import read_tensors, unreadable, write_tensors
from qdq.errors import CalibrationError, QDQError, StorageError
from qdq.storage import resume_mismatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from calibration.distributed import Part

__all__ = ["Entry", "ResumeFile", "damaged"]

FORMAT = 1

_LOG = logging.getLogger(__name__)
_FILE = re.compile(r"(?P<stage>[a-z]+)-(?P<rank>\d+)-of-(?P<count>\d+)\.safetensors")


@dataclass(frozen=True)
class Entry:
    """How far one stage has come.

    Args:
        stage: its name, lower-case letters.
        identity: what the tensors belong to; all values are text.
        seen: the figures of the data so far, ``batches`` among them.
        tensors: what was collected.
    """

    stage: str
    identity: Mapping[str, str]
    seen: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def write(self, path: Path) -> None:
        """Write it, whole at every moment.

        Raises:
            StorageError: when it cannot be written.
        """
        about = {"format": FORMAT, "stage": self.stage, "identity": dict(self.identity), "seen": dict(self.seen)}
        write_tensors(path, self.tensors, about)

    @classmethod
    def read(cls, path: Path) -> Entry:
        """What :meth:`write` wrote.

        Raises:
            CalibrationError: when the file is missing, damaged, or of another kind or version.
        """
        tensors, about = read_tensors(path)
        try:
            if about["format"] != FORMAT:
                raise ValueError("of another version")
            return cls(str(about["stage"]), dict(about["identity"]), dict(about["seen"]), tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise unreadable(path, error) from error


def damaged(entry: Entry, reason: object) -> CalibrationError:
    """The error for an entry in which something is missing or of another shape."""
    return CalibrationError(f"what was kept of the stage {entry.stage} is damaged ({reason}); begin anew")


@dataclass
class ResumeFile:
    """Keeps the progress of one calibration in a folder.

    A stage calls :meth:`begin`, goes on after the batches of the entry that it gets, calls :meth:`keep` after every
    further batch, all that inside of :meth:`guard`, and :meth:`flush` at its end. Who has made safe what came of it
    calls :meth:`remove`.

    Args:
        folder: appears with the first entry that is written.
        identity: what the progress belongs to, beside what the stages say themselves; all values are text.
        resume: whether to go on from what the folder holds. Without, it is overwritten.
        part: of several processes.
        every: seconds between two writes while batches run.
        tell: is told, in words, when a stage goes on from what the folder holds.
    """

    folder: Path
    identity: Mapping[str, str] = field(default_factory=dict)
    resume: bool = False
    part: Part = WHOLE
    every: float = 30.0
    tell: Callable[[str], object] | None = None

    def __post_init__(self) -> None:
        self._pending: Callable[[], Entry] | None = None
        self._written = time.monotonic()
        self._can_write = True
        self._identities: dict[str, dict[str, str]] = {}
        self._is_refused = False

    @property
    def is_empty(self) -> bool:
        """Whether no resume_file has written here."""
        return not self._files()

    @property
    def is_begun(self) -> bool:
        """Whether a stage was begun: what the folder holds is this calibration's own."""
        return bool(self._identities) and not self._is_refused

    def leftovers(self) -> str | None:
        """What was written so far, by this run or an earlier one, in words; None: nothing that can be read."""
        entries = []
        for path in self._files():
            with suppress(CalibrationError):
                entries.append(Entry.read(path))
        if not entries:
            return None
        batches = {entry.stage: 0 for entry in entries}
        for entry in entries:
            batches[entry.stage] = max(batches[entry.stage], int(entry.seen.get("batches", 0)))
        return ", ".join(f"{stage} after batch {count}" for stage, count in batches.items())

    def begin(self, stage: str, identity: Mapping[str, str]) -> Entry | None:
        """Where an interrupted run had come to in this stage; None: at its beginning.

        Args:
            stage: its name, lower-case letters.
            identity: what its tensors belong to.

        Raises:
            CalibrationError: when what is to be resumed belongs to something else (all that differs is named), or
                cannot be read.
        """
        mine = {**self.identity, **identity, "processes": str(self.part.count)}
        found = None
        if self.resume:
            try:
                found = self._find(stage, mine)
            except CalibrationError:
                self._is_refused = True
                raise
        else:
            with suppress(OSError):  # none is there, or nothing can be written there, which is said later
                self._path(stage).unlink()
        self._identities[stage] = mine
        self._written = time.monotonic()
        if found is not None and self.tell is not None:
            self.tell(f"{stage}: resumed after batch {found.seen.get('batches')}")
        return found

    def keep(self, stage: str, seen: Mapping[str, Any], tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        """Take note of a state, and write it down when the last time is long past.

        Args:
            stage: that was begun.
            seen: ``batches`` and further figures.
            tensors: gives what was collected up to this batch, also when it is called later.
        """
        identity = self._identities[stage]
        self._pending = lambda: Entry(stage, identity, seen, tensors())
        if time.monotonic() - self._written >= self.every:
            self._write_if_possible()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Write down what was kept when the block is interrupted; errors in what it was given are no interruption."""
        try:
            yield
        except QDQError as error:
            if isinstance(error, StorageError):
                self._write_if_possible()
            raise
        except BaseException:
            self._write_if_possible()
            raise

    def flush(self) -> None:
        """Write down what was kept last; where that is not possible, say so and go on."""
        self._write_if_possible()

    def remove(self) -> None:
        """Remove what this calibration wrote, that of the other processes too, once it is needed no more."""
        self._pending = None
        for path in self._files():
            path.unlink(missing_ok=True)
        with suppress(OSError):  # it is not there, or holds somebody else's files
            self.folder.rmdir()

    def _write_if_possible(self) -> None:
        if self._pending is None:
            return
        entry = self._pending()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            entry.write(self._path(entry.stage))
            self._pending = None
            self._can_write = True
        except (OSError, StorageError) as error:
            if self._can_write:  # say it once
                _LOG.warning("progress cannot be kept: %s", error)
            self._can_write = False
        self._written = time.monotonic()

    def _path(self, stage: str) -> Path:
        return self.folder / f"{stage}-{self.part.rank}-of-{self.part.count}.safetensors"

    def _files(self) -> list[Path]:
        """The files of any resume_file in the folder."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _FILE.fullmatch(path.name))

    def _find(self, stage: str, identity: Mapping[str, str]) -> Entry | None:
        """The entry of this process, if there is one; that of another one is checked, too."""
        own = self._path(stage)
        there = [path for path in self._files() if path.name.startswith(f"{stage}-")]
        if not there:
            return None
        entry = Entry.read(own if own in there else there[0])
        self._check(entry, identity)
        return entry if own in there else None

    def _check(self, entry: Entry, mine: Mapping[str, str]) -> None:
        if problem := resume_mismatch(self.folder, entry.identity, mine, what="calibration"):
            raise CalibrationError(problem)
