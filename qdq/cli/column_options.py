"""The options that name the columns of labelled examples; see :func:`qdq.cli.option_groups.with_groups`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from qdq.data.examples import Columns

__all__ = ["USUAL_COLUMNS", "ColumnOptions"]

_PANEL = "Columns, where their names are not the usual ones"


@dataclass(frozen=True, kw_only=True)
class ColumnOptions:
    """What the options say; None: the usual names are tried."""

    text_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The text; of retrieval the query.", rich_help_panel=_PANEL)
    ] = None
    text_pair_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The second text, or the passage.", rich_help_panel=_PANEL)
    ] = None
    label_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="The label, score or tags.", rich_help_panel=_PANEL)
    ] = None

    def chosen(self) -> Columns | None:
        """The columns; None where none is named."""
        from qdq.data.examples import Columns

        columns = Columns(text=self.text_column, text_pair=self.text_pair_column, label=self.label_column)
        return columns if columns.names else None


USUAL_COLUMNS = ColumnOptions()
