"""What is kept of every example: a few numbers each, in columns, whatever the order they come in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

__all__ = ["Numbers", "Table", "TableBuilder", "rows_of"]

Numbers = NDArray[np.float64]

Table = Mapping[str, Numbers]
"""Columns of equal length by name, a row for every example."""


def rows_of(table: Table) -> int:
    """Number of examples."""
    return len(next(iter(table.values()), ()))


class TableBuilder:
    """Fills columns by the index of the example; 8 bytes a number is all that grows with the data."""

    def __init__(self, *columns: str) -> None:
        self._columns = {name: np.empty(0) for name in columns}
        self._rows = 0

    def put(self, index: ArrayLike, **values: ArrayLike) -> None:
        """Numbers ``(batch,)`` of the examples ``index`` ``(batch,)`` for some columns."""
        places = np.asarray(index, dtype=np.int64)
        if not places.size:
            return
        self._rows = max(self._rows, int(places.max()) + 1)
        for name, numbers in values.items():
            column = self._columns[name]
            if len(column) < self._rows:
                self._columns[name] = _sized(column, max(self._rows, 2 * len(column), 1024))
            self._columns[name][places] = np.asarray(numbers)

    def finish(self) -> dict[str, Numbers]:
        """The table, its rows in the order of the data."""
        return {name: _sized(column, self._rows) for name, column in self._columns.items()}


def _sized(column: Numbers, rows: int) -> Numbers:
    """The column cut, or filled up with NaN."""
    sized = np.full(rows, np.nan)
    sized[: len(column)] = column[:rows]
    return sized
