"""Tables with one look for every command, without vertical lines, which would cost width."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["new_table", "span"]


def new_table(*columns: str, words: int = 1) -> Table:
    """Return an empty table.

    Args:
        columns: The headers. A header may have two lines, with the unit on the second, so that nine columns fit into 80
            characters.
        words: How many of the first columns hold words; the others hold numbers.
    """
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, collapse_padding=True)
    for index, column in enumerate(columns):
        # A long name is folded: a name that is cut off could not be used.
        table.add_column(column, justify="left" if index < words else "right", vertical="bottom", overflow="fold")
    return table


def span(bounds: Sequence[float], form: str) -> str:
    """Return two bounds as text, or one value if they are equal."""
    low, high = bounds
    return f"{low:{form}}" if low == high else f"{low:{form}} .. {high:{form}}"
