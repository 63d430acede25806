"""What a training writes down while it runs: a table, and on request TensorBoard's files."""

from __future__ import annotations

import csv
import io
from typing import TYPE_CHECKING, Any

from qdq.errors import MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["Log"]

_FIRST = ("step", "epoch", "loss", "lr")


class Log:
    """Rows of figures, by step; in memory, so that a state can hold all of them.

    Args:
        tensorboard: folder for TensorBoard's files; None for none.

    Raises:
        MissingPackageError: tensorboard is asked for and not installed.
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
        """Take a row; figures of a step that has one already are added to it."""
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
        """A table with a header; a cell is empty where a row has no such figure."""
        names = [*_FIRST, *dict.fromkeys(name for row in self.rows for name in row if name not in _FIRST)]
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        return text.getvalue()

    def restore(self, text: str) -> None:
        """Go on from a table that :meth:`to_csv` wrote."""
        rows = csv.DictReader(io.StringIO(text))
        self.rows = [
            {name: int(value) if name == "step" else float(value) for name, value in row.items() if value}
            for row in rows
        ]

    def close(self) -> None:
        """Write out what TensorBoard's writer holds back."""
        if self._writer is not None:
            self._writer.close()

    def _writer_from(self, step: int) -> Any:
        """The writer; what an earlier run wrote of this step and later ones is struck out."""
        if self._writer is None and self._folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step)
        return self._writer
