"""What the runners of a file have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from qdq.errors import CheckpointError

if TYPE_CHECKING:
    from exporters.runners.inputs import TensorInfo

__all__ = ["FileRunner", "existing_file", "one_line"]


class FileRunner:
    """The names that the file gives."""

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
    """``path``, which must be a file.

    Raises:
        CheckpointError: it is none.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such model file")
    return Path(path)


def one_line(error: Exception) -> str:
    """The runtime's message without the lines that name its own source files."""
    lines = [line for line in str(error).splitlines() if not line.startswith(("Exception from ", "Check '"))]
    return " ".join(" ".join(lines or [str(error)]).split())
