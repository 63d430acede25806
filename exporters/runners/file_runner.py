"""What the runners of a model file have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qdq.errors import CheckpointError
from qdq.storage import refuse_pointer

if TYPE_CHECKING:
    from exporters.runners.inputs import TensorInfo

__all__ = ["FileRunner", "existing_file", "one_line"]


class FileRunner:
    """Take the names of inputs and outputs from a file.

    Attributes that a subclass must set in its constructor: ``inputs`` and ``_output_names``.
    """

    inputs: tuple[TensorInfo, ...]
    _output_names: tuple[str, ...]

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the model's inputs, in order."""
        return tuple(i.name for i in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the model's outputs, in order."""
        return self._output_names


def existing_file(path: Path) -> Path:
    """Return ``path`` if it is a file.

    Raises:
        CheckpointError: If it is not, or if it is a pointer of Git LFS.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such model file")
    refuse_pointer(Path(path))
    return Path(path)


def one_line(error: Exception) -> str:
    """Return the message of a runtime in one line, without the lines that name source files of the runtime."""
    lines = [line for line in str(error).splitlines() if not line.startswith(("Exception from ", "Check '"))]
    return " ".join(" ".join(lines or [str(error)]).split())
