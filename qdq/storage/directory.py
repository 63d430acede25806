"""Output directories that appear whole or not at all.

The work is done in a hidden staging directory beside the target (:mod:`qdq.storage.staging`), which is exchanged with
the target at the end. Whatever happens, the target is either as it was or holds the whole new content.
"""

from __future__ import annotations

import os
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from qdq.errors import StorageError
from qdq.storage.io_errors import storage_errors
from qdq.storage.manifest import check_replaceable, write_manifest
from qdq.storage.own_files import check_no_input
from qdq.storage.staging import StagingDirectory, recover

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["atomic_directory"]


@contextmanager
def atomic_directory(target: Path, *, kind: str, inputs: Iterable[Path | None] = ()) -> Iterator[Path]:
    """Give a new directory to write into, which becomes ``target`` when the block ends without an exception.

    Any exception, KeyboardInterrupt included, removes what was written and leaves the target as it was. If the process
    is killed, the next call for the same target cleans up.

    Args:
        target: A path that is absent, empty, or an earlier result of the same kind. Missing parents are created.
        kind: What the directory is (``checkpoint``, ``export`` and so on). One kind never replaces another.
        inputs: What the work reads. None of it may be replaced, even if it is an earlier result.

    Yields:
        The directory to write into.

    Raises:
        ConfigError: The target is a file, was not made by qdq, is of another kind, is one of the inputs, or holds
            files that qdq did not write.
        StorageError: The disk is full, a permission is missing, or another I/O error occurred. Libraries that report
            such errors in exceptions of their own are covered.
    """
    check_no_input(target, inputs)
    target = Path(os.path.realpath(target))
    with storage_errors(target):
        recover(target)
        check_replaceable(target, kind)
        with _parents(target):
            staging = StagingDirectory(target)
            try:
                yield staging.new
                write_manifest(staging.new, kind)
                # Check again, because the work may have taken hours and files may have been added.
                check_replaceable(target, kind)
                staging.exchange()
            finally:
                staging.close()


@contextmanager
def _parents(target: Path) -> Iterator[None]:
    """Create the missing parents of ``target``, and remove them again if the block fails."""
    missing = [parent for parent in target.parents if not parent.exists()]
    nearest = next(parent for parent in target.parents if parent.exists())
    if not nearest.is_dir():
        raise StorageError(f"{target}: {nearest} is not a folder; choose another name")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        with suppress(OSError):
            for parent in missing:
                parent.rmdir()
        raise
