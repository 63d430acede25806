"""Read the weight files of a model directory: safetensors or pickles of torch, whole or in shards.

A pickle is read without running its code. Programs that train a model also write files that hold more than its
weights, such as ``{"state_dict": ..., "epoch": 3}``: the weights are found in them.
"""

from __future__ import annotations

import logging
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors
import torch
from safetensors.torch import load_file
from torch import Tensor

from qdq.errors import CheckpointError, StorageError, describe_problems
from qdq.models.folder_diagnosis import describe_missing_weights
from qdq.storage import read_json, refuse_pointer

if TYPE_CHECKING:
    import os

__all__ = ["WEIGHT_FILES", "read_tensors", "tensor_names"]

_LOG = logging.getLogger(__name__)

WEIGHT_FILES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""The names of the weights, in the order in which transformers looks for them."""


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read all tensors of a model directory. They are mapped into memory, not copied, if the format allows it.

    Args:
        path: The directory.

    Returns:
        The tensors by their names in the files.

    Raises:
        CheckpointError: There are no weights, shards are missing, a file is damaged, or a pickle would run code.
        StorageError: A file cannot be read.
    """
    tensors: dict[str, Tensor] = {}
    for file in _weight_files(Path(path)):
        state, note = _read_file(file)
        tensors |= state
        if note:
            _LOG.warning("%s: %s", file, note)
    return tensors


def tensor_names(path: str | os.PathLike[str]) -> list[str]:
    """Return the names of all tensors of a model directory. The values of safetensors files are not read.

    Raises:
        CheckpointError: As :func:`read_tensors`.
        StorageError: A file cannot be read.
    """
    names: list[str] = []
    for file in _weight_files(Path(path)):
        names += _names_in_header(file) if file.suffix == ".safetensors" else _read_file(file)[0]
    return names


def _weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights, and check that all of them exist."""
    found = next((folder / name for name in WEIGHT_FILES if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(describe_missing_weights(folder, WEIGHT_FILES))
    return _shards(found) if found.name.endswith(".index.json") else [found]


def _shards(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: no weight_map from tensor names to files")
    names = sorted(set(weight_map.values()))
    # A name with a path is refused, so that a checkpoint cannot make us read files outside its directory.
    missing = [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(describe_problems(str(index), [f"shard {name} is missing" for name in missing]))
    return [index.parent / name for name in names]


def _check_readable(path: Path) -> None:
    """Raise if a file cannot be read; safetensors would call every such file a missing one."""
    refuse_pointer(path)
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def _names_in_header(path: Path) -> list[str]:
    _check_readable(path)
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            return [*file.keys()]
    except safetensors.SafetensorError as error:
        raise CheckpointError(_damaged_safetensors(path, error)) from error


def _damaged_safetensors(path: Path, error: Exception) -> str:
    return f"{path}: damaged or incomplete safetensors file ({error}); copy it again"


def _read_file(path: Path) -> tuple[dict[str, Tensor], str]:
    """Return the tensors of a file, and what a reader of the log should know about them."""
    _check_readable(path)
    if path.suffix == ".safetensors":
        try:
            return load_file(path), ""
        except safetensors.SafetensorError as error:
            raise CheckpointError(_damaged_safetensors(path, error)) from error
        except OSError as error:
            raise StorageError(f"{path}: {error}") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a TorchScript program, which is an error below
            # Files of torch before 1.6 are not zip archives and cannot be mapped.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise CheckpointError(_refused_pickle(path, error)) from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        if "TorchScript" in str(error):
            cure = "save torch.jit.load(FILE).state_dict() instead"
            raise CheckpointError(f"{path}: is a TorchScript program, not weights; {cure}") from error
        raise CheckpointError(f"{path}: damaged or incomplete PyTorch file ({error}); copy it again") from error
    return _weights_in(path, state)


def _refused_pickle(path: Path, error: Exception) -> str:
    # torch names the first class or function that the pickle asks for.
    found = re.search(r"(?:GLOBAL|global) ([\w.]+)", str(error))
    holds = f"{found[1]} beside tensors" if found else "more than tensors"
    return (
        f"{path}: refused, the pickle holds {holds} and could run code; if you trust its author, load it with "
        "torch.load(FILE, weights_only=False) and save its state dict alone, best with "
        'safetensors.torch.save_file(state, "model.safetensors")'
    )


# --- weights inside a larger record ---


def _weights_in(path: Path, content: Any) -> tuple[dict[str, Tensor], str]:
    """Return the only state dict in what a pickle holds, and a note that says which one, where the file holds more.

    Raises:
        CheckpointError: It holds none, or several.
    """
    if isinstance(content, Mapping) and content and all(isinstance(value, Tensor) for value in content.values()):
        return dict(content), ""
    found = dict(_state_dicts(content))
    if not found:
        raise CheckpointError(f"{path}: not a state dict of tensors; {_kind_of(content)}")
    if len(found) > 1:
        shown = ", ".join(f"{where} ({len(state)} tensors)" for where, state in found.items())
        raise CheckpointError(
            f"{path}: holds several sets of tensors: {shown}; save the one to load by itself: "
            f'torch.save(torch.load(FILE, weights_only=True)[NAME], "{path.name}")'
        )
    ((where, state),) = found.items()
    others = [str(key) for key in content if key != where.partition(".")[0]]
    note = f'the weights are taken from its part "{where}"; left out: {_listed(others)}' if where else ""
    return state, note


def _state_dicts(content: Any, where: str = "") -> list[tuple[str, dict[str, Tensor]]]:
    """Return the places of all state dicts in nested mappings, as names joined by dots, and their tensors."""
    if not isinstance(content, Mapping) or not all(isinstance(key, str) for key in content):
        return []  # the state of an optimizer has numbers as keys
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    # Weights have names with dots; what else a trainer writes down, such as a random state, has none.
    if any("." in key for key in tensors):
        return [(where, tensors)]
    inner = [(f"{where}.{key}" if where else key, value) for key, value in content.items()]
    return [one for place, value in inner for one in _state_dicts(value, place)]


def _kind_of(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"it holds {_listed([*map(str, content)])}" if content else "it is empty"
    return f"it holds a {type(content).__name__}"


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:5]) or "nothing"
    return f"{shown} and {len(names) - 5} more" if len(names) > 5 else shown
