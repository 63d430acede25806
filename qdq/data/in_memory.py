"""Take rows that are in memory: Python iterables, and the tables of pandas, polars, pyarrow and ``datasets``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from qdq.data.records import BARE, quoted
from qdq.errors import DataError

__all__ = ["columns_of", "rows_in_memory"]

_TUPLE_COLUMNS = ("text", "text_pair", "label")


def rows_in_memory(source: Any, split: str | None = None) -> Iterable[Any]:
    """Return an iterable of rows.

    Iterating over a table gives the names of its columns, not its rows; the package that made it is known by its
    methods, so that nothing is imported.

    Args:
        source: The rows, or a table.
        split: The split of a ``DatasetDict``.

    Raises:
        DataError: ``source`` holds no rows, or a split is missing.
    """
    if isinstance(source, Mapping) and source and all(hasattr(value, "features") for value in source.values()):
        if split is None and len(source) != 1:
            raise DataError(f"the rows given have the splits {quoted([*source])}; name one, or give it")
        if split is not None and split not in source:
            raise DataError(f"the rows given have no split {split!r}; their splits are {quoted([*source])}")
        return source[next(iter(source)) if split is None else split]  # type: ignore[no-any-return]
    if hasattr(source, "iter_rows") and hasattr(source, "to_dicts"):  # polars
        return source.to_dicts()  # type: ignore[no-any-return]
    if hasattr(source, "to_pylist") and hasattr(source, "schema"):  # pyarrow
        return source.to_pylist()  # type: ignore[no-any-return]
    if hasattr(source, "to_dict") and hasattr(source, "itertuples"):  # pandas
        return source.to_dict("records")  # type: ignore[no-any-return]
    if not isinstance(source, Iterable) or isinstance(source, bytes | Mapping):
        kind = type(source).__name__
        raise DataError(f"rows cannot come from type {kind}; give a file, or a list of texts, tuples or dicts")
    return source


def columns_of(row: Any) -> dict[str, Any] | None:
    """Return a row of an iterable by columns; None if it is no row."""
    if isinstance(row, str):
        return {BARE: row}
    if isinstance(row, Mapping):
        return {name: _plain(value) for name, value in row.items()}
    if isinstance(row, tuple | list) and 2 <= len(row) <= 3:
        columns = ("text", "label") if len(row) == 2 and not isinstance(row[1], str) else _TUPLE_COLUMNS
        return dict(zip(columns, map(_plain, row), strict=False))
    return None


def _plain(value: Any) -> Any:
    """Return numbers and arrays of NumPy and PyTorch as Python's, and what pandas has for a missing value as None."""
    if type(value).__name__ in ("NAType", "NaTType"):
        return None
    return value.tolist() if hasattr(value, "tolist") else value
