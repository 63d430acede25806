"""Write single files that are whole at every moment; read and write JSON."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from qdq.errors import CheckpointError, ConfigError, QDQError, StorageError
from qdq.storage.git_lfs import refuse_pointer
from qdq.storage.io_errors import partial_beside, storage_errors

__all__ = ["check_readable", "read_json", "write_bytes_atomic", "write_json", "write_text_atomic"]


def write_bytes_atomic(path: Path, data: bytes | memoryview) -> None:
    """Write a file that is whole at every moment: it holds the previous bytes or the new ones.

    Args:
        path: The file; its directory exists.
        data: The new contents.

    Raises:
        StorageError: The disk is full, a permission is missing, or another I/O error occurred.
    """
    path = Path(os.path.realpath(path))
    partial = partial_beside(path)
    with storage_errors(path):
        try:
            with partial.open("xb") as file:
                file.write(data)
                file.flush()
                # Without this a crash of the machine could leave the new name with no contents.
                os.fsync(file.fileno())
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_text_atomic(path: Path, text: str) -> None:
    """Write a UTF-8 text file that is whole at every moment; see :func:`write_bytes_atomic`.

    Raises:
        StorageError: The disk is full, a permission is missing, or another I/O error occurred.
    """
    write_bytes_atomic(path, text.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, with keys in their order and a final newline.

    Raises:
        ValueError: A number is NaN or infinite, which JSON cannot hold.
        StorageError: The disk is full, a permission is missing, or another I/O error occurred.
    """
    write_text_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def check_readable(path: Path, *, missing: type[QDQError] = CheckpointError) -> None:
    """Raise if a file cannot be read. safetensors calls every such file a missing one, so call this before.

    Args:
        path: The file.
        missing: The exception to raise when the file does not exist.

    Raises:
        CheckpointError: The file does not exist. With ``missing``, that exception is raised instead.
        StorageError: The file cannot be read; the message has the reason.
    """
    try:
        with path.open("rb"):
            pass
    except FileNotFoundError as cause:
        raise missing(f"{path}: no such file") from cause
    except OSError as cause:
        raise StorageError(f"cannot read {path}: {cause.strerror or cause}") from cause


def read_json(
    path: Path, *, error: type[CheckpointError | ConfigError] = CheckpointError, missing: str | None = None
) -> dict[str, Any]:
    """Read the JSON object in a file.

    Args:
        path: The file.
        error: The exception to raise when the file is missing or damaged.
        missing: The message to use when the file does not exist.

    Raises:
        CheckpointError: The file is missing, is a pointer of Git LFS, is not valid UTF-8 or JSON, or holds something
            other than an object.
            With ``error``, that exception is raised instead.
        StorageError: The file cannot be read.
    """
    refuse_pointer(path, error)
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as cause:
        raise error(missing or f"{path}: no such file") from cause
    except OSError as cause:
        raise StorageError(f"cannot read {path}: {cause.strerror or cause}") from cause
    except (ValueError, RecursionError) as cause:  # not UTF-8, not JSON, or nested too deeply
        raise error(f"{path}: not valid JSON ({cause})") from cause
    if not isinstance(found, dict):
        raise error(f"{path}: must hold a JSON object, not a {type(found).__name__}")
    return found
