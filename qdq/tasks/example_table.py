"""Keep a few numbers of every example in columns; examples may come in any order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Numbers", "Table", "TableBuilder", "rows_of"]

Numbers = NDArray[np.float64]

#: Columns of equal length by name, with a row for every example.
Table = Mapping[str, Numbers]


def rows_of(table: Table) -> int:
    """Return the number of examples."""
    return len(next(iter(table.values()), ()))


class TableBuilder:
    """Fill columns by the index of the example. Memory grows by 8 bytes for each number.

    Args:
        *columns: The names of the columns.
    """

    def __init__(self, *columns: str) -> None:
        self._columns = {name: np.empty(0) for name in columns}
        self._rows = 0

    def put(self, index: ArrayLike, **values: ArrayLike) -> None:
        """Store numbers of some examples.

        Args:
            index: The indices of the examples ``(batch,)``.
            **values: By column, their numbers ``(batch,)``.
        """
        rows = np.asarray(index, dtype=np.int64)
        if not rows.size:
            return
        self._rows = max(self._rows, int(rows.max()) + 1)
        for name, numbers in values.items():
            column = self._columns[name]
            if len(column) < self._rows:
                self._columns[name] = _sized(column, max(self._rows, 2 * len(column), 1024))
            self._columns[name][rows] = np.asarray(numbers)

    def finish(self) -> dict[str, Numbers]:
        """Return the table, with its rows in the order of the data."""
        return {name: _sized(column, self._rows) for name, column in self._columns.items()}


def _sized(column: Numbers, rows: int) -> Numbers:
    """Cut the column to this many rows, or fill it up with NaN."""
    sized = np.full(rows, np.nan)
    sized[: len(column)] = column[:rows]
    return sized
