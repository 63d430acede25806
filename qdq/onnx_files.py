"""Find the ONNX file that a path means, and the directory of its configuration and tokenizer.

Other programs give their files other names than ours, and place them elsewhere:

    model_quantized.onnx                             alone beside config.json and the tokenizer (Optimum)
    onnx/model.onnx, onnx/model_quantized.onnx       below config.json, the tokenizer and maybe the weights (the Hub)
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from qdq.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["MODEL_FILE", "ONNX_FILE_ENDINGS", "find_model_file", "folder_with_tokenizer", "model_file_of"]

MODEL_FILE = "model.onnx"
ONNX_FILE_ENDINGS = (".onnx", ".ort")

_FOLDER = "onnx"  # where the Hub's directories keep their ONNX files
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin*", "tf_model.h5", "*.ckpt*")


def find_model_file(folder: Path) -> Path | None:
    """Return the ONNX file of a directory that is no checkpoint, None if there is none.

    A directory that has ``model.onnx`` is one. Other names count only where no weights lie beside them: such a
    directory is the checkpoint that it was before somebody put an ONNX file there.

    Raises:
        CheckpointError: There are several files, and none of them is ``model.onnx``.
    """
    if (folder / MODEL_FILE).is_file():
        return folder / MODEL_FILE
    if any(True for pattern in _WEIGHTS for _ in folder.glob(pattern)):
        return None
    return _chosen(folder)


def model_file_of(given: Path, *, cure: str = "give a directory that qdq export wrote, or an .onnx file") -> Path:
    """Return the ONNX file that ``given`` is, or that lies in that directory or in ``onnx`` below it.

    Args:
        given: A file or a directory.
        cure: What to do if there is none, for the message.

    Raises:
        CheckpointError: There is none, or there are several, and none of them is ``model.onnx``.
    """
    if given.is_file():
        return given
    if not given.is_dir():
        raise CheckpointError(f"{given}: no such file or directory")
    found = _chosen(given)
    if found is None:
        raise CheckpointError(f"{given} is not an export: it has no {MODEL_FILE} and no other .onnx file; {cure}")
    return found


def _chosen(folder: Path) -> Path | None:
    for place in (folder, folder / _FOLDER):
        files = sorted(path for path in place.glob("*.onnx") if path.is_file())
        if place / MODEL_FILE in files or len(files) == 1:
            return place / MODEL_FILE if place / MODEL_FILE in files else files[0]
        if files:
            names = ", ".join(path.name for path in files)
            raise CheckpointError(f"{place} has several ONNX files and no {MODEL_FILE}: give one of them ({names})")
    return None


def folder_with_tokenizer(file: Path, *, tokenizer: bool = True) -> Path:
    """Return the directory with the config.json and the tokenizer of an ONNX file: its own, or the one above.

    Args:
        file: The ONNX file.
        tokenizer: Whether a tokenizer is needed there too.

    Raises:
        CheckpointError: Neither has both.
    """
    from qdq.data.tokenizer import TOKENIZER_FILES

    own = file.absolute().parent if str(file.parent) == "." else file.parent
    lacks = {}
    for folder in (own, own.parent):
        has_tokenizer = not tokenizer or any((folder / name).is_file() for name in TOKENIZER_FILES)
        missing = ["config.json"] * (not (folder / "config.json").is_file()) + ["tokenizer"] * (not has_tokenizer)
        if not missing:
            return folder
        lacks[folder] = " and no ".join(missing)
    (here, what), (above, there) = lacks.items()
    raise CheckpointError(
        f"{file}: {here} has no {what}, and {above}, the folder above, has no {there}: copy them from the model that "
        "the file was exported from"
    )
