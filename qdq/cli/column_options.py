"""The options that name the columns of labeled examples, a group of :func:`qdq.cli.option_groups.with_groups`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qdq.data.examples import Columns

__all__ = ["USUAL_COLUMNS", "ColumnOptions"]

_PANEL = "Columns (if they do not have the usual names)"


@dataclass(frozen=True, kw_only=True)
class ColumnOptions:
    """Names of columns; where one is None, the usual names are tried."""

    text_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Column or key of the text; for retrieval, of the query.", rich_help_panel=_PANEL
        ),
    ] = None
    text_pair_column: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Column or key of the second text; for retrieval, of the passage.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    label_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column or key of the label, the score or the tags.", rich_help_panel=_PANEL),
    ] = None

    def chosen(self) -> Columns | None:
        """Return the named columns, or None if none is named."""
        from qdq.data.examples import Columns

        columns = Columns(text=self.text_column, text_pair=self.text_pair_column, label=self.label_column)
        return columns if columns.names else None


USUAL_COLUMNS = ColumnOptions()
