"""Find and read the files of a Megatron-LM checkpoint: one for each part of the model."""

from __future__ import annotations

import io
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qdq.errors import CheckpointError, StorageError
from qdq.interop.torch_file import load
from qdq.storage import refuse_pointer

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["FILE", "Documents", "read"]

FILE = "model_optim_rng.pt"
_FILES = (FILE, "model_rng.pt")  # the second one lies beside a file of the optimizer
_ITERATION = "latest_checkpointed_iteration.txt"
_PART = re.compile(r"mp_rank_(\d+)(?:_(\d+))?")


@dataclass(frozen=True)
class Documents:
    """The contents of the files.

    Args:
        name: The name of the checkpoint, for messages.
        stages: The contents of the files by pipeline stage, then by tensor-parallel rank.
    """

    name: str
    stages: Sequence[Sequence[Mapping[str, Any]]]

    @property
    def first(self) -> Mapping[str, Any]:
        """The file of the first rank, whose arguments hold for all."""
        return self.stages[0][0]


def read(path: Path) -> Documents:
    """Read all files of a checkpoint.

    Args:
        path: The file ``model_optim_rng.pt``, a directory above it, or NVIDIA's archive (.zip) with it. A file in
            ``mp_rank_00`` stands for all parts beside it.

    Raises:
        CheckpointError: There are no files, parts are missing, or a file is damaged or could run code.
        StorageError: A file cannot be read.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: no such file; give {FILE} or a directory above it")
    if path.is_dir():
        path = _inside(path)
    elif _PART.fullmatch(path.parent.name) and path.name in _FILES:
        path = path.parent.parent
    if path.is_file():
        refuse_pointer(path)
        return _read_archive(path) if _is_archive(path) else Documents(str(path), [[_read(path, str(path))]])
    found = {file.parent.name: file for name in _FILES for file in path.glob(f"mp_rank_*/{name}")}
    if len(found) == 1:
        (file,) = found.values()
        return Documents(str(file), [[_read(file, str(file))]])
    grid = _grid(str(path), found)
    return Documents(str(path), [[_read(found[part], str(found[part])) for part in stage] for stage in grid])


def _inside(folder: Path) -> Path:
    """Return the file, or the directory of all parts, in the directory of a training run, an iteration or a rank."""
    for name in _FILES:
        if (folder / name).is_file():
            return _all_parts(folder, folder / name)
    if (folder / _ITERATION).is_file():
        last = (folder / _ITERATION).read_text(encoding="utf-8", errors="replace").strip()
        inner = folder / (f"iter_{int(last):07d}" if last.isdecimal() else last)
        if not inner.is_dir() or inner.parent != folder:
            raise CheckpointError(f"{folder / _ITERATION} says {last!r}, and there is no {inner.name}")
        folder = inner
    elif (folder / "release").is_dir():
        folder /= "release"
    if any(folder.glob("mp_rank_*/*.pt")):
        return folder
    if any(folder.glob("*.distcp")) or any((folder / name).is_file() for name in (".metadata", "common.pt")):
        raise CheckpointError(
            f"{folder}: a distributed checkpoint of Megatron core (torch_dist), which only Megatron-LM reads: run its "
            "pretrain_bert.py as for the training, with --ckpt-convert-format torch --ckpt-convert-save DIR, and "
            "convert DIR"
        )
    raise CheckpointError(f"{folder}: no checkpoint of Megatron-LM: there is no mp_rank_00/{FILE}")


def _all_parts(folder: Path, file: Path) -> Path:
    return folder.parent if _PART.fullmatch(folder.name) else file


def _grid(where: str, parts: Mapping[str, Path] | Mapping[str, str]) -> list[list[str]]:
    """Return the names of the parts by pipeline stage, then by tensor-parallel rank."""
    ranks: dict[tuple[int, int], str] = {}
    for part in parts:
        match = _PART.fullmatch(part)
        if match is None:
            raise CheckpointError(
                f"{where}: {part} is of a model with expert parallelism, which has no counterpart: "
                "a megatron-bert model has no experts"
            )
        ranks[int(match[2] or 0), int(match[1])] = part
    if not ranks:
        raise CheckpointError(f"{where}: no checkpoint of Megatron-LM: there is no mp_rank_00/{FILE}")
    stages, tensors = max(stage for stage, _ in ranks) + 1, max(rank for _, rank in ranks) + 1
    missing = [f"{rank:02d}_{stage:03d}" for stage in range(stages) for rank in range(tensors)]
    missing = [f"mp_rank_{name}" for name in missing if (int(name.split("_")[1]), int(name.split("_")[0])) not in ranks]
    if missing:
        raise CheckpointError(f"{where}: parts of the model are missing: {', '.join(missing)}; copy them here")
    return [[ranks[stage, rank] for rank in range(tensors)] for stage in range(stages)]


def _is_archive(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(member.endswith(tuple(f"/{name}" for name in _FILES)) for member in archive.namelist())


def _read_archive(path: Path) -> Documents:
    """Read the files in a .zip archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = [m for m in archive.namelist() if m.endswith(tuple(f"/{name}" for name in _FILES))]
            parts = {member.split("/")[-2]: member for member in members}
            if len({"/".join(member.split("/")[:-2]) for member in members}) > 1:
                raise CheckpointError(f"{path}: has several checkpoints ({', '.join(members[:4])}): unpack one of them")
            if len(members) == 1:
                return Documents(f"{path}/{members[0]}", [[_read_member(archive, members[0], str(path))]])
            grid = _grid(str(path), parts)
            return Documents(str(path), [[_read_member(archive, parts[p], str(path)) for p in stage] for stage in grid])
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise CheckpointError(f"{path}: damaged archive, or one with a password ({error})") from error


def _read_member(archive: zipfile.ZipFile, member: str, path: str) -> Mapping[str, Any]:
    return _read(io.BytesIO(archive.read(member)), f"{path}/{member}")


def _read(file: Path | io.BytesIO, name: str) -> Mapping[str, Any]:
    document = load(file, name=name)
    if not isinstance(document, Mapping):
        raise CheckpointError(f"{name}: not a checkpoint of Megatron-LM: it holds a {type(document).__name__}")
    return document
