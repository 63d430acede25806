"""Read the variables of a checkpoint with TensorFlow."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.errors import CheckpointError, MissingPackageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["checkpoint_prefix", "read_variables"]


def checkpoint_prefix(source: str | Path) -> Path:
    """Return the common prefix of a checkpoint's files, which TensorFlow calls the checkpoint, such as ``model.ckpt``.

    Args:
        source: The prefix, the ``.index`` or ``.meta`` file, or a directory with one checkpoint.

    Raises:
        CheckpointError: There is no checkpoint, or the directory has several.
    """
    path = Path(source)
    if path.is_dir():
        found = sorted(path.glob("*.index"))
        if not found:
            raise CheckpointError(f"{path}: no checkpoint of TensorFlow: there is no file *.index")
        if len(found) > 1:
            names = ", ".join(file.name.removesuffix(".index") for file in found)
            raise CheckpointError(f"{path}: has several checkpoints; name one of them: {names}")
        return found[0].with_suffix("")
    if path.suffix in (".index", ".meta"):
        path = path.with_suffix("")
    if not path.with_name(f"{path.name}.index").is_file():
        raise CheckpointError(f"{path}: no such checkpoint of TensorFlow: {path.name}.index is missing")
    return path


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
