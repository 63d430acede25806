"""What an interrupted ``qdq calibrate`` leaves beside its output, so that ``--resume`` goes on from there."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, NoReturn

from qdq.errors import QDQError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from calibration.distributed import ProcessRank
    from calibration.resume_file import ResumeFile
    from qdq.cli.session import Session

__all__ = ["kept_beside"]


@contextmanager
def kept_beside(
    session: Session, output: Path, identity: Mapping[str, str], process: ProcessRank, *, resume: bool | None
) -> Iterator[ResumeFile | None]:
    """A resume file in ``<output>.calibration``, which is gone when the block has come to its end; none if resume is
    None.

    An interrupt, SIGTERM too, or a disk that is full leaves it there, and the message says so.
    """
    from calibration.resume_file import ResumeFile

    if resume is None:
        yield None
        return
    output = output.absolute()
    resume_file = ResumeFile(
        output.with_name(f"{output.name}.calibration"), identity, resume=resume, process=process, notify=session.say
    )
    if resume and resume_file.is_empty:
        session.say(f"nothing to resume in {resume_file.folder}: from the beginning")
    elif not resume and not resume_file.is_empty:
        left = resume_file.describe_progress() or "damaged"
        session.say(f"warning: {resume_file.folder}: an interrupted calibration ({left}) is begun anew; see --resume")
    try:
        with _terminated_as_interrupted():
            yield resume_file
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {_kept(resume_file) or 'nothing was changed'}") from None
    except StorageError as error:
        if kept := _kept(resume_file):
            error.args = (f"{error}; {kept}",)
        raise
    except QDQError:
        if resume_file.is_begun and process.world_size == 1:  # the same would come again
            resume_file.remove()
        raise
    if process.rank == 0:
        resume_file.remove()


def _kept(resume_file: ResumeFile) -> str | None:
    left = resume_file.describe_progress()
    return left and f"{resume_file.folder} keeps what was collected ({left}): the same command with --resume goes on"


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Schedulers and torchrun end programs with SIGTERM: what Ctrl-C does, that does here."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
