"""The figures of a training: a table, and on request files for TensorBoard."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from qdq.errors import MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["TrainingLog"]

_FIRST = ("step", "epoch", "loss", "lr")


class TrainingLog:
    """A row of figures for each logged step, held in memory so that a resume file can hold all of them.

    Args:
        tensorboard: Folder for TensorBoard's files; None writes none.

    Raises:
        MissingPackageError: If TensorBoard's files are asked for and the package is not installed.
    """

    def __init__(self, tensorboard: Path | None = None) -> None:
        self.rows: list[dict[str, Any]] = []
        self._writer: Any = None
        self._folder = tensorboard
        if tensorboard is not None:
            try:
                import tensorboard as _  # noqa: F401  (torch's own message names no command)
            except ModuleNotFoundError as error:
                raise MissingPackageError("tensorboard", extra="train", purpose="logging to TensorBoard") from error

    def add(self, step: int, figures: Mapping[str, Any]) -> None:
        """Add a row, or add figures to the row that the step already has."""
        if self.rows and self.rows[-1]["step"] == step:
            self.rows[-1].update(figures)
        else:
            self.rows.append({"step": step, **figures})
        writer = self._writer_from(step)
        if writer is not None:
            for name, value in figures.items():
                if isinstance(value, int | float):
                    writer.add_scalar(name, value, step)

    def to_csv(self) -> str:
        """Return a table with a header; the cell of a figure that a row does not have is empty."""
        names = [*_FIRST, *dict.fromkeys(name for row in self.rows for name in row if name not in _FIRST)]
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def restore(self, text: str) -> None:
        """Replace the rows by those of a table that :meth:`to_csv` returned."""
        rows = csv.DictReader(io.StringIO(text))
        self.rows = [
            {name: int(value) if name == "step" else float(value) for name, value in row.items() if value}
            for row in rows
        ]

    def close(self) -> None:
        """Flush and close TensorBoard's files."""
        if self._writer is not None:
            self._writer.close()

    def _writer_from(self, step: int) -> Any:
        if self._writer is None and self._folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            # After a resume, TensorBoard hides what the interrupted training wrote for this step and later ones.
            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        return self._writer
