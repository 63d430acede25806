"""What readers of data give and report: records, and the problems of one input."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, TypeAlias

from qdq.errors import DataError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

__all__ = [
    "BARE",
    "HeaderRule",
    "Hints",
    "Problems",
    "Record",
    "first_row_is_header",
    "json_type",
    "quoted",
    "share",
]

#: The column name of a row without columns: a line of text, or a bare JSON string.
BARE = ""

#: Takes the fields of a table's first row. Returns None when they name the columns, or the names of the columns when
#: the row is data already.
HeaderRule: TypeAlias = "Callable[[Sequence[str]], Sequence[str] | None]"


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a source.

    Args:
        location: Where the row is in its source, for messages, such as ``line 12``.
        values: The values by column.
        repeated: Names that more than one column has.
    """

    location: str
    values: dict[str, Any]
    repeated: tuple[str, ...] = ()


class Problems:
    """Collect the problems of one input, so that the user sees them together, and what its reader decided.

    The first twenty are kept as text and the others are only counted: memory does not grow with a damaged file.

    Args:
        name: What the user calls the input.
    """

    LIMIT = 20

    def __init__(self, name: str) -> None:
        self.name = name
        self.count = 0
        self.notes: dict[str, int] = {}
        self._shown: list[str] = []

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, location: str, problem: str) -> None:
        """Add a problem of a row or line."""
        self.count += 1
        if len(self._shown) < self.LIMIT:
            self._shown.append(f"{location}: {problem}")

    def note(self, text: str, level: int = logging.INFO) -> None:
        """Note what the reader decided about the input, or what a user should know of it.

        Args:
            text: A sentence without the name of the input.
            level: ``logging.WARNING`` where the input is likely not what the user meant.
        """
        self.notes[text] = level

    def raise_if_any(self) -> None:
        """Raise the problems that were added, if there are any.

        Raises:
            DataError: At least one problem was added.
        """
        if self:
            problems = chain(self._shown, repeat("", self.count - len(self._shown)))
            raise DataError(describe_problems(self.name, problems, limit=self.LIMIT))


def first_row_is_header(_: Sequence[str]) -> None:
    """Apply the header rule of tables whose first row always names the columns."""


@dataclass(frozen=True)
class Hints:
    """What a reader of files should know of its caller.

    Args:
        header: The header rule of tables.
        split: The split to read, where one file may hold several.
        words: Whether the caller wants words with tags rather than texts.
    """

    header: HeaderRule = first_row_is_header
    split: str | None = None
    words: bool = False


def quoted(names: Sequence[str]) -> str:
    """Return the names in quotes, separated by commas."""
    return ", ".join(repr(name) for name in names)


def share(part: float, whole: float) -> str:
    """Return ``40 of 60 rows (66.7 %)``."""
    return f"{part} of {whole} rows ({100 * part / max(whole, 1):.1f} %)"


def json_type(value: Any) -> str:
    """Return what JSON calls the type of a value, with its article."""
    kinds = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return kinds.get(type(value), "null" if value is None else f"a {type(value).__name__}")
