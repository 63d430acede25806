"""The progress of a calibration on disk, from which an interrupted calibration is resumed.

A calibration has stages. Each process writes one file for each stage into the folder,
``<stage>-<rank>-of-<world size>.safetensors``. A file says what it belongs to (model, recipe, data and so on) and how
many batches were processed, and holds the statistics after them.
"""

from __future__ import annotations

import logging
import re
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from calibration.distributed import SINGLE_PROCESS
from calibration.statistics.tensor_file import read_tensors, unreadable, write_tensors
from qdq.errors import CalibrationError, QDQError, StorageError
from qdq.storage import resume_mismatch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from torch import Tensor

    from calibration.distributed import ProcessRank

__all__ = ["ResumeFile", "StageProgress", "damaged"]

FORMAT = 1

_LOG = logging.getLogger(__name__)
_FILE = re.compile(r"(?P<stage>[a-z]+)-(?P<rank>\d+)-of-(?P<count>\d+)\.safetensors")


@dataclass(frozen=True)
class StageProgress:
    """How far one stage has come.

    Args:
        stage: The name of the stage, in lower-case letters.
        identity: What the tensors belong to. All values are text.
        data_count: The fields of :class:`calibration.batches.DataCount`, ``batches`` among them.
        tensors: What was collected.
    """

    stage: str
    identity: Mapping[str, str]
    data_count: Mapping[str, Any]
    tensors: Mapping[str, Tensor]

    def write(self, path: Path) -> None:
        """Write one safetensors file, which is whole at every moment.

        Raises:
            StorageError: The file cannot be written.
        """
        # "seen" is the name of the data count on disk.
        about = {"format": FORMAT, "stage": self.stage, "identity": dict(self.identity), "seen": dict(self.data_count)}
        write_tensors(path, self.tensors, about)

    @classmethod
    def read(cls, path: Path) -> StageProgress:
        """Read a file that :meth:`write` wrote.

        Raises:
            CalibrationError: The file is missing, damaged, or of another kind or version.
        """
        tensors, about = read_tensors(path)
        try:
            if about["format"] != FORMAT:
                raise ValueError("of another version")
            return cls(str(about["stage"]), dict(about["identity"]), dict(about["seen"]), tensors)
        except (KeyError, TypeError, ValueError) as error:
            raise unreadable(path, error) from error


def damaged(progress: StageProgress, reason: object) -> CalibrationError:
    """Return the error for progress in which something is missing or of another shape."""
    return CalibrationError(
        f"the resume file of the stage {progress.stage} is damaged ({reason}); start again without resuming"
    )


@dataclass
class ResumeFile:
    """The progress of one calibration, kept in a folder so that it can be resumed.

    A stage calls :meth:`begin` and skips the batches that the progress it gets has processed. It calls :meth:`keep`
    after every further batch, inside the block of :meth:`guard`, and :meth:`flush` at its end. When the result of the
    calibration is safe, the caller calls :meth:`remove`.

    Args:
        folder: The folder, which is created with the first file.
        identity: What the progress belongs to, besides what the stages add. All values are text.
        resume: Whether to continue from what the folder holds. If not, that is overwritten.
        process: Which of several processes this is.
        interval: The seconds between two writes while batches run.
        notify: Called with a message when a stage continues from what the folder holds.
    """

    folder: Path
    identity: Mapping[str, str] = field(default_factory=dict)
    resume: bool = False
    process: ProcessRank = SINGLE_PROCESS
    interval: float = 30.0
    notify: Callable[[str], object] | None = None

    def __post_init__(self) -> None:
        self._pending: Callable[[], StageProgress] | None = None
        self._written = time.monotonic()
        self._can_write = True
        self._identities: dict[str, dict[str, str]] = {}
        self._is_refused = False

    @property
    def is_empty(self) -> bool:
        """Whether the folder holds no resume file."""
        return not self._files()

    @property
    def is_begun(self) -> bool:
        """Whether a stage was begun, so that what the folder holds belongs to this calibration."""
        return bool(self._identities) and not self._is_refused

    def describe_progress(self) -> str | None:
        """Return how far this or an earlier run came, in words; None if no file can be read."""
        readable = []
        for path in self._files():
            with suppress(CalibrationError):
                readable.append(StageProgress.read(path))
        if not readable:
            return None
        batches = {progress.stage: 0 for progress in readable}
        for progress in readable:
            batches[progress.stage] = max(batches[progress.stage], int(progress.data_count.get("batches", 0)))
        return ", ".join(f"{stage} after batch {count}" for stage, count in batches.items())

    def begin(self, stage: str, identity: Mapping[str, str]) -> StageProgress | None:
        """Begin a stage, and return how far an interrupted run had come in it; None if it starts from the beginning.

        Args:
            stage: The name of the stage, in lower-case letters.
            identity: What its tensors belong to.

        Raises:
            CalibrationError: What is to be resumed belongs to something else (all differences are named), or cannot be
                read.
        """
        requested = {**self.identity, **identity, "processes": str(self.process.world_size)}
        found = None
        if self.resume:
            try:
                found = self._find(stage, requested)
            except CalibrationError:
                self._is_refused = True
                raise
        else:
            with suppress(OSError):  # There is no file, or the folder cannot be changed, which is reported later.
                self._path(stage).unlink()
        self._identities[stage] = requested
        self._written = time.monotonic()
        if found is not None and self.notify is not None:
            self.notify(f"{stage}: resumed after batch {found.data_count.get('batches')}")
        return found

    def keep(self, stage: str, data_count: Mapping[str, Any], tensors: Callable[[], Mapping[str, Tensor]]) -> None:
        """Remember the progress after a batch, and write it if the last write is long ago.

        Args:
            stage: A stage that was begun.
            data_count: The data so far: ``batches`` and the other fields of the count.
            tensors: Returns what was collected up to this batch, even if it is called after further batches.
        """
        # The tensors are made only if they are written, because that is rarely the case.
        identity = self._identities[stage]
        self._pending = lambda: StageProgress(stage, identity, data_count, tensors())
        if time.monotonic() - self._written >= self.interval:
            self._write_if_possible()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Write the last progress if the block is interrupted.

        Errors in the user's input do not count as interruptions: running again would fail again.
        """
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
        """Write the last progress. If that fails, log a warning and go on."""
        self._write_if_possible()

    def remove(self) -> None:
        """Remove the files of this calibration, those of other processes too."""
        self._pending = None
        for path in self._files():
            path.unlink(missing_ok=True)
        with suppress(OSError):  # The folder does not exist, or holds other files.
            self.folder.rmdir()

    def _write_if_possible(self) -> None:
        if self._pending is None:
            return
        progress = self._pending()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            progress.write(self._path(progress.stage))
            self._pending = None
            self._can_write = True
        except (OSError, StorageError) as error:
            if self._can_write:  # Warn once, not after every batch.
                _LOG.warning("progress cannot be saved: %s", error)
            self._can_write = False
        self._written = time.monotonic()

    def _path(self, stage: str) -> Path:
        return self.folder / f"{stage}-{self.process.rank}-of-{self.process.world_size}.safetensors"

    def _files(self) -> list[Path]:
        """Return the resume files in the folder, whichever process wrote them."""
        if not self.folder.is_dir():
            return []
        return sorted(path for path in self.folder.iterdir() if _FILE.fullmatch(path.name))

    def _find(self, stage: str, requested: Mapping[str, str]) -> StageProgress | None:
        """Return the progress of this process. If only another process wrote a file, check that and return None."""
        own = self._path(stage)
        # Without a file of its own, this process checks the file of another one: all belong to the same calibration.
        present = [path for path in self._files() if path.name.startswith(f"{stage}-")]
        if not present:
            return None
        progress = StageProgress.read(own if own in present else present[0])
        if problem := resume_mismatch(self.folder, progress.identity, requested, what="calibration"):
            raise CalibrationError(problem)
        return progress if own in present else None
