"""What a process knows of its surroundings: its rank, interruptions, and modules that hide ours."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Interruption", "Process", "shadowing_problem", "terminated_as_interrupted"]


@dataclass(frozen=True)
class Process:
    """One of several processes that work together.

    Args:
        rank: Number of this process, from 0.
        world_size: Number of processes.
    """

    rank: int = 0
    world_size: int = 1

    @classmethod
    def current(cls) -> Process:
        """Return what ``RANK`` and ``WORLD_SIZE`` say, as torchrun, accelerate and schedulers set them."""
        return cls(int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1")))

    @classmethod
    def of_torchrun(cls) -> Process:
        """Return the same if torchrun started this process; otherwise it works alone.

        A scheduler may set the variables for one command that is started by hand in a container of a larger job. That
        command must not wait for processes which nobody has started.
        """
        return cls.current() if "TORCHELASTIC_RUN_ID" in os.environ else cls()

    @property
    def is_first(self) -> bool:
        """Whether this process speaks for all of them."""
        return self.rank == 0 or self.world_size == 1


class Interruption:
    """Take note of signals while the context lasts, so that the work can end at a point of its own choice.

    Args:
        signals: The signals to note.
        active: Whether to catch signals at all. Python lets the main thread alone do so.
        patient: Whether to note every signal; otherwise the second one raises KeyboardInterrupt at once.

    Attributes:
        came: Whether a signal came.
    """

    def __init__(
        self,
        *signals: signal.Signals,
        active: bool = True,
        patient: bool = False,
    ) -> None:
        self.came = False
        self._signals = signals or (signal.SIGINT, signal.SIGTERM)
        self._active = active and threading.current_thread() is threading.main_thread()
        self._patient = patient
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if self._active:
            self._before = {number: signal.signal(number, self._take_note) for number in self._signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take_note(self, *_: object) -> None:
        if self.came and not self._patient:
            raise KeyboardInterrupt
        self.came = True


@contextmanager
def terminated_as_interrupted() -> Iterator[None]:
    """Let SIGTERM raise KeyboardInterrupt, as Ctrl-C does: schedulers and torchrun end programs with it."""
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


def shadowing_problem(package: str) -> str | None:
    """Return why importing ``package`` gives another module than ours, or None if it gives ours.

    Python looks into the working directory, or the folder of the script, before it looks into site-packages. A user's
    own calibration.py there would be imported in place of the package that is installed beside qdq.
    """
    ours = Path(__file__).resolve().parents[1] / package / "__init__.py"
    spec = find_spec(package)
    found = None if spec is None else spec.origin
    if found is None:
        return f"the package {package} of qdq is missing from {ours.parents[1]}: install qdq again"
    if Path(found).resolve() != ours:
        return f"{found} hides the package {package} of qdq: rename it, or start from another directory"
    return None
