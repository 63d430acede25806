"""One safetensors file with tensors and a JSON document about them, which is whole at every moment."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from qdq.errors import CalibrationError, StorageError
from qdq.storage import check_readable
from qdq.storage.io_errors import partial_beside

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

__all__ = ["read_tensors", "unreadable", "write_tensors"]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write ``tensors``, and ``about`` as JSON, and flush them to the disk.

    Raises:
        StorageError: The file cannot be written. A previous file of this name is unchanged.
    """
    # Write beside the file and rename, so that a crash leaves the old file or the new one.
    partial = partial_beside(Path(os.path.realpath(path)))
    try:
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, partial, metadata={"qdq": json.dumps(about)})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    finally:
        partial.unlink(missing_ok=True)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read the tensors and the document that :func:`write_tensors` wrote.

    Raises:
        CalibrationError: The file is missing, damaged, or was not written by :func:`write_tensors`.
        StorageError: The file cannot be read.
    """
    check_readable(path, missing=CalibrationError)
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {})["qdq"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
        if not isinstance(about, dict):
            raise TypeError("no JSON object")
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise unreadable(path, error) from error
    return tensors, about


def unreadable(path: Path, reason: object) -> CalibrationError:
    """Return the error for a file that does not hold calibration statistics."""
    return CalibrationError(
        f"{path}: holds no calibration statistics that this version can read ({reason}); collect them again"
    )
