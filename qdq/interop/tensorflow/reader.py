"""Read the variables of a checkpoint with TensorFlow."""

from __future__ import annotations

import glob
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.errors import CheckpointError, MissingPackageError
from qdq.storage import refuse_pointer

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["OF_OBJECTS", "checkpoint_prefix", "folders_of", "read_variables"]

OF_OBJECTS = (
    "an object-based checkpoint of TensorFlow 2, which names variables by their place in a Python program and not by "
    "BERT's names: load it with the program that wrote it and save the model for PyTorch; for TensorFlow's Model "
    "Garden, convert_bert_original_tf2_checkpoint_to_pytorch.py of transformers 4 does that"
)
_GRAPH_OF_OBJECTS = b"_CHECKPOINTABLE_OBJECT_GRAPH"
_ENDINGS = (".index", ".meta", ".data-00000-of-00001")


def checkpoint_prefix(source: str | Path) -> Path:
    """Return the common prefix of a checkpoint's files, which TensorFlow calls the checkpoint, such as ``model.ckpt``.

    Args:
        source: The prefix, one of the files, a directory with one checkpoint, or a module of TensorFlow Hub: a
            directory with ``variables/variables.index``, or its ``saved_model.pb``.

    Raises:
        CheckpointError: There is no checkpoint, the directory has several, or it is object-based.
    """
    path = Path(source)
    if path.name in ("saved_model.pb", "tfhub_module.pb"):
        path = path.parent
    if path.is_dir():
        found = sorted(path.glob("*.index")) or sorted(path.glob("variables/*.index"))
        if not found:
            raise CheckpointError(f"{path}: no checkpoint of TensorFlow: there is no file *.index{_instead(path)}")
        if len(found) > 1:
            names = ", ".join(file.name.removesuffix(".index") for file in found)
            raise CheckpointError(f"{path}: has several checkpoints; name one of them: {names}")
        path = found[0]
    if path.suffix in (".h5", ".hdf5", ".keras"):
        raise CheckpointError(f"{path}: weights of Keras in HDF5{_INSTEAD}")
    for ending in _ENDINGS:
        path = path.with_name(path.name.removesuffix(ending)) if path.name != ending else path
    index = path.with_name(f"{path.name}.index")
    if not index.is_file():
        raise CheckpointError(f"{path}: no such checkpoint of TensorFlow: {index.name} is missing")
    for file in (index, *path.parent.glob(f"{glob.escape(path.name)}.data-*")):
        refuse_pointer(file)
    # The index is a table of names, which are not compressed.
    if _GRAPH_OF_OBJECTS in index.read_bytes():
        raise CheckpointError(f"{path}: {OF_OBJECTS}")
    return path


_INSTEAD = ", which are not read: download model.safetensors or pytorch_model.bin of the same model"


def _instead(folder: Path) -> str:
    files = [file.name for file in sorted(folder.glob("*.h5"))]
    return f"; {files[0]} has weights of Keras{_INSTEAD}" if files else ""


def folders_of(prefix: Path) -> tuple[Path, ...]:
    """Return the directories in which the configuration and the vocabulary of a checkpoint may lie."""
    folders = [prefix.parent]
    if prefix.parent.name == "variables":  # a module of TensorFlow Hub
        folders.append(prefix.parent.parent)
    return tuple(place for folder in folders for place in (folder, folder / "assets", folder / "assets.extra"))


def read_variables(source: str | Path) -> dict[str, NDArray[Any]]:
    """Read all variables by name.

    Args:
        source: See :func:`checkpoint_prefix`.

    Raises:
        CheckpointError: There is no checkpoint, or it is damaged.
        MissingPackageError: TensorFlow is not installed.
    """
    prefix = checkpoint_prefix(source)
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # TensorFlow would otherwise log its start to stderr
    try:
        from tensorflow.train import load_checkpoint
    except ImportError as error:
        raise MissingPackageError(
            "tensorflow", extra="tensorflow", purpose="reading a checkpoint of TensorFlow"
        ) from error
    try:
        reader = load_checkpoint(str(prefix))
        return {name: reader.get_tensor(name) for name in sorted(reader.get_variable_to_shape_map())}
    except Exception as error:  # TensorFlow's own errors have no common base below Exception
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{prefix}: damaged or incomplete checkpoint of TensorFlow ({reason})") from error
