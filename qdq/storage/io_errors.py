"""Turn failures of the disk into one error that names the path as the user knows it."""

from __future__ import annotations

import errno
import os
import re
import secrets
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.errors import QDQError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["STAGING", "partial_beside", "storage_errors"]

STAGING = ".qdq-staging-"
"""What follows the target's name in the name of its staging directory."""

_LONGEST_NAME = 255  # bytes, on the usual file systems

# Libraries in other languages put these texts into exceptions of their own, where Python would raise an OSError.
_DISK_REASONS = tuple(
    os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO, errno.EFBIG)
)


def partial_beside(path: Path) -> Path:
    """Return the hidden file in which the contents of ``path`` are written until they are complete."""
    ending = f".qdq-partial-{secrets.token_hex(4)}"
    name = f".{path.name}{ending}"
    # A name that the file system just allows would be too long with more around it.
    return path.with_name(name if len(os.fsencode(name)) <= _LONGEST_NAME else ending)


@contextmanager
def storage_errors(target: Path) -> Iterator[None]:
    """Raise every I/O failure inside the block as a StorageError with the path and the reason.

    Args:
        target: The file or directory that is being written. Paths inside its staging directory are shown as the paths
            that they would have had.
    """
    try:
        yield
    except QDQError as error:
        # It was raised by code that only knows the hidden directory.
        hidden = re.escape(str(target.parent / f".{target.name}{STAGING}")) + r"[^/]*/new"
        error.args = tuple(re.sub(hidden, lambda _: str(target), str(part)) for part in error.args)
        raise
    except (ConnectionError, TimeoutError, ChildProcessError):
        raise  # These are OSErrors too, but not about a file.
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise StorageError(f"{_visible_path(error.filename, target)}: {error.strerror}") from error
        if reason := _disk_reason(error):
            raise StorageError(f"{target}: {reason}") from error
        raise


def _visible_path(path: Any, target: Path) -> Path:
    """Return the path of an error, with a hidden one replaced by the path in ``target`` that it stands for."""
    if not isinstance(path, str | bytes | os.PathLike):
        return target
    failed = Path(os.fsdecode(path))
    if not failed.is_relative_to(target.parent):
        return failed
    parts = failed.relative_to(target.parent).parts
    if parts and parts[0].startswith((f".{target.name}.qdq-", ".qdq-partial-")):
        return target.joinpath(*parts[2:])
    return failed


def _disk_reason(error: BaseException | None) -> str | None:
    """Return what an exception, or one of its causes, says about the disk."""
    while error is not None:
        text = str(error).lower()
        for reason in _DISK_REASONS:
            if reason.lower() in text:
                return reason
        if "enforce fail at inline_container" in text:  # torch.save drops the reason
            return "writing failed; is the disk full?"
        error = error.__cause__
    return None
