"""Ctrl-C and SIGTERM end a training between two steps, where a state can be written."""

from __future__ import annotations

import signal
import threading
from typing import Any, Self

__all__ = ["Interruption"]

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """Takes note of signals for as long as it lasts; the second one is not waited with.

    Attributes:
        came: whether there was one.
    """

    def __init__(self, *, active: bool = True) -> None:
        self.came = False
        self._active = active and threading.current_thread() is threading.main_thread()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if self._active:
            self._before = {number: signal.signal(number, self._take) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _take(self, *_: object) -> None:
        if self.came:
            raise KeyboardInterrupt
        self.came = True
