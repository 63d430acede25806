"""Recognize the single files that qdq wrote, so that no other file is ever replaced.

A directory has a manifest, see :mod:`qdq.storage.manifest`. A single file has none, and is recognized by its contents:

1. an engine: the metadata that ``qdq build`` writes beside it holds its checksum;
2. a repaired ONNX file: its metadata holds :data:`REPAIRED_BY`;
3. statistics: a safetensors file whose metadata holds the document that ``qdq calibrate`` writes;
4. a training log: a table whose first columns are those of the log.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError, StorageError
from qdq.protobuf import BYTES, read_fields
from qdq.storage.io_errors import partial_beside, storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

__all__ = ["REPAIRED_BY", "check_no_input", "check_replaceable_file"]

REPAIRED_BY = "qdq.repaired"
"""Key in the metadata of an ONNX file that qdq repaired; the value is the command."""

_HEADER_BYTES = 100 << 20  # the largest header of a safetensors file
_LOG_COLUMNS = b"step,epoch,loss,lr"
_MODEL_METADATA, _ENTRY_KEY = 14, 1  # fields of ModelProto and StringStringEntryProto


def check_replaceable_file(path: Path, kind: str, *, inputs: Iterable[Path | None] = ()) -> None:
    """Raise unless a file may be written to ``path``: nothing is there, or an earlier result of the same kind.

    Call it before the work, and again before the file is written: the work may take hours.

    Args:
        path: The file to write. Its directory must exist.
        kind: ``engine``, ``repaired ONNX file``, ``statistics`` or ``training log``.
        inputs: What the command reads. None of it may be replaced, whatever it is.

    Raises:
        ConfigError: The path is a directory or a device, is one of the inputs (also under another name), or holds a
            file that cannot be recognized as an earlier result.
        StorageError: The directory is missing or cannot be written, or the file cannot be read.
    """
    recognizes, companion = _KINDS[kind]
    path = Path(path).absolute()  # as the user named it: links are not resolved
    with storage_errors(path):
        check_no_input(path, inputs)
        real = Path(os.path.realpath(path))
        _check_regular(path, real)
        beside = None if companion is None else real.with_name(real.name + companion)
        if real.exists() and not recognizes(real):
            raise ConfigError(_refusal(path, kind))
        if beside is not None and os.path.lexists(beside) and not _is_own_companion(beside, real, kind):
            raise ConfigError(_refusal(path.with_name(path.name + str(companion)), f"file beside the {kind}"))
        _check_writable(real)


def check_no_input(output: Path, inputs: Iterable[Path | None]) -> None:
    """Raise if an output is one of the inputs or holds one, under whatever name: a link, another spelling.

    Raises:
        ConfigError: It is or holds one of them.
    """
    for one in inputs:
        if one is None or not os.path.lexists(output):
            continue
        with suppress(OSError):  # one of them does not exist
            if Path(output).samefile(one):
                raise ConfigError(
                    f"{output}: is read by this command and would be replaced by its own result; choose another name"
                )
        if Path(one).resolve().is_relative_to(Path(output).resolve()):
            raise ConfigError(
                f"{output}: holds {one}, which this command reads and which would be lost; choose another name"
            )


def _check_regular(path: Path, real: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        raise ConfigError(f"{path}: is a folder; name a file in it")
    if not stat.S_ISREG(mode) or not real.exists():  # /dev/stdout may lead to a file without a name
        raise ConfigError(f"{path}: is not a regular file and cannot be replaced; name a file")


def _check_writable(real: Path) -> None:
    """Raise an OSError if no file can be made beside ``real``: permissions alone do not tell."""
    if not real.parent.is_dir():
        what = "is not a folder" if real.parent.exists() else "does not exist; create the folder"
        raise StorageError(f"{real}: {real.parent} {what}")
    probe = partial_beside(real)
    probe.touch(exist_ok=False)
    probe.unlink()


def _refusal(path: Path, kind: str) -> str:
    return (
        f"{path}: exists and cannot be recognized as {_article(kind)} {kind} that qdq wrote, so it is not replaced; "
        "choose another name or remove it"
    )


def _article(kind: str) -> str:
    return "an" if kind[0] in "aeiou" else "a"


# ---------------------------------------------------------------------------------------------------------------------
# One function for each kind: it answers False where it cannot tell. Files that cannot be read raise OSErrors.


def _is_engine(path: Path) -> bool:
    document = _json_in(path.with_name(f"{path.name}.json"))
    with path.open("rb") as file:
        return document is not None and document.get("sha256") == hashlib.file_digest(file, "sha256").hexdigest()


def _is_engine_metadata(path: Path) -> bool:
    document = _json_in(path)
    return document is not None and {"format", "sha256", "source", "report"} <= document.keys()


def _is_repaired(path: Path) -> bool:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return any(
                data[field.begin : field.end] == REPAIRED_BY.encode()
                for entry in read_fields(data)
                if entry.number == _MODEL_METADATA and entry.wire_type == BYTES
                for field in read_fields(data, entry.begin, entry.end)
                if field.number == _ENTRY_KEY
            )
    except ValueError:  # the file is empty, or is not protobuf
        return False


def _is_statistics(path: Path) -> bool:
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        if size > _HEADER_BYTES:
            return False
        header = file.read(size)
    try:
        about = json.loads(json.loads(header)["__metadata__"]["qdq"])
        return isinstance(about, dict) and {"format", "kind", "samples", "identity"} <= about.keys()
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _is_training_log(path: Path) -> bool:
    with path.open("rb") as file:
        first = file.read(len(_LOG_COLUMNS) + 1)
    return first.startswith(_LOG_COLUMNS) and first[-1:] in b",\r\n"


def _is_own_companion(path: Path, owner: Path, kind: str) -> bool:
    """Return whether the file beside an output belongs to an earlier result, which may itself be gone."""
    if not path.is_file():
        return False
    if kind == "engine":
        return _is_engine_metadata(path)
    return owner.exists()  # `owner` was recognized, and its weights carry no sign of their own


def _json_in(path: Path) -> dict[str, Any] | None:
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


_KINDS: dict[str, tuple[Callable[[Path], bool], str | None]] = {
    "engine": (_is_engine, ".json"),
    "repaired ONNX file": (_is_repaired, ".data"),
    "statistics": (_is_statistics, None),
    "training log": (_is_training_log, None),
}
"""For each kind of file: what recognizes it, and the ending of a file that is written beside it."""
