"""Recognize the pointers that Git LFS leaves in place of large files."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qdq.errors import CheckpointError, QDQError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["is_pointer", "refuse_pointer"]

_FIRST_LINE = b"version https://git-lfs.github.com/spec/"
_MAX_BYTES = 1024  # the specification of Git LFS bounds a pointer so


def is_pointer(path: Path) -> bool:
    """Return whether a file holds a pointer of Git LFS instead of its contents; False where it cannot be read."""
    try:
        if not path.is_file() or path.stat().st_size >= _MAX_BYTES:
            return False
        with path.open("rb") as file:
            return file.read(len(_FIRST_LINE)) == _FIRST_LINE
    except OSError:
        return False


def refuse_pointer(path: Path, error: type[QDQError] = CheckpointError) -> None:
    """Raise if a file is a pointer of Git LFS.

    Call this before a file is parsed: parsers report such a file as damaged.

    Raises:
        CheckpointError: The file is a pointer. With ``error``, that exception is raised instead.
    """
    if is_pointer(path):
        raise error(
            f"{path}: is a Git LFS pointer, not the file itself: fetch it with `git lfs pull` in its repository, or "
            "download it again"
        )
