"""Ctrl-C and SIGTERM end a training between two steps, where its resume file can be written."""

from __future__ import annotations

import signal
import threading
from typing import Any, Self

__all__ = ["Interruption"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Take note of the first signal while the context lasts; the second one raises KeyboardInterrupt at once.

    Args:
        active: Whether to catch signals at all. Python lets the main thread alone do so.

    Attributes:
        came: Whether a signal came.
    """

    def __init__(self, *, active: bool = True) -> None:
        self.came = False
        self._active = active and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if self._active:
            self._before = {number: signal.signal(number, self._take_note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take_note(self, *_: object) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True
