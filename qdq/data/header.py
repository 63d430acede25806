"""Whether the first row of a table names its columns or is data already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qdq.data.columns import Columns, settle
from qdq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["headerless"]


def headerless(columns: Columns, task: str, first: Sequence[str]) -> tuple[str, ...] | None:
    """The names of a table's columns when its first row is data already; None when the row is a header.

    1. Columns asked for by number: the columns are their numbers.
    2. A row with a usual name for what the task needs, or with any column that was asked for, is a header.
    3. ``score, text, text`` and ``text, text, score``, the score a number or empty: a pair with its score.
    4. ``text, number`` and ``number, text``: a sentence with its label.
    5. ``text, number, anything, text``: CoLA's source, label, mark and sentence.
    """
    numbers = tuple(str(number) for number in range(len(first)))
    names = [name.strip() for name in first]
    if columns.names:  # cases 1 and 2
        by_number = all(name in numbers for name in columns.names) and not set(columns.names) <= set(names)
        return numbers if by_number else None
    try:
        settle(columns, task, names, name="")
    except DataError:
        kinds = "".join(_kind(field) for field in first)
        return _SHAPES.get(kinds)
    return None


_SHAPES = {
    "ntt": ("label", "sentence1", "sentence2"),
    "ett": ("label", "sentence1", "sentence2"),
    "ttn": ("sentence1", "sentence2", "label"),
    "tte": ("sentence1", "sentence2", "label"),
    "tn": ("sentence", "label"),
    "nt": ("label", "sentence"),
    "tnet": ("source", "label", "mark", "sentence"),
    "tntt": ("source", "label", "mark", "sentence"),
}


def _kind(field: str) -> str:
    """``n`` for a number, ``e`` for nothing, ``t`` for text."""
    if not field.strip():
        return "e"
    try:
        float(field)
    except ValueError:
        return "t"
    return "n"
