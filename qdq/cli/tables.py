"""Tables for people: one look for every command, without lines that cost width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["new_table", "span"]


def new_table(*columns: str, words: int = 1) -> Table:
    """An empty table with these headers; the first ``words`` columns hold words, the others numbers.

    A header may have two lines, the unit on the second, so that nine columns fit into a terminal of 80.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for index, column in enumerate(columns):
        # Folded where it must be: a shortened name of a slot is no name.
        table.add_column(column, justify="left" if index < words else "right", vertical="bottom", overflow="fold")
    return table


def span(bounds: Sequence[float], form: str) -> str:
    """Two bounds, or the one value that both are."""
    low, high = bounds
    return f"{low:{form}}" if low == high else f"{low:{form}} .. {high:{form}}"
