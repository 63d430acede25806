"""Look at a file once for each version of it, since it is opened for its labels, for its checks and for training."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from qdq.errors import StorageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["Look", "once_a_version"]

T = TypeVar("T")

#: Reads the file and returns something immutable. The text tells looks of different kinds apart.
Look: TypeAlias = "Callable[[Path, str], T]"

#: Files whose looks are remembered.
_FILES = 64


def once_a_version(look: Look[T]) -> Look[T]:
    """Return a function that remembers what a look at a file found until the file changes."""

    @lru_cache(maxsize=_FILES)
    def remembered(_: tuple[int, ...], path: Path, kind: str) -> T:
        return look(path, kind)

    def run(path: Path, kind: str) -> T:
        try:
            found = path.stat()
        except OSError as error:
            raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
        version = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns)
        return remembered(version, path, kind)

    return run
