"""Read tables, ``.csv`` and ``.tsv``, in the way that :mod:`qdq.data.table_look` finds their fields written."""

from __future__ import annotations

import csv
from itertools import islice
from typing import TYPE_CHECKING

from qdq.data.records import Problems, Record
from qdq.data.table_look import look_at_table
from qdq.data.text_files import read_lines
from qdq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from qdq.data.records import Hints

__all__ = ["read_table"]


def read_table(path: Path, problems: Problems, hints: Hints, *, delimiter: str) -> Iterator[Record]:
    """Yield the rows of a table. Before the first reading the file is looked at as a whole.

    Args:
        path: The file.
        problems: Receives the problems of rows.
        hints: The header rule.
        delimiter: What stands between fields by the name of the file.

    Raises:
        DataError: The header cannot be read.
    """
    look = look_at_table(path, delimiter)
    for text, level in look.notes:
        problems.note(text, level)
    # Their last line is needed for messages; a record may span several.
    last = ""

    def lines() -> Iterator[str]:
        nonlocal last
        for line in islice(read_lines(path, problems), look.skipped, None):
            last = line
            yield line

    table = look.dialect.parse(lines())
    header: list[str] | None = None
    has_header = True
    repeated: tuple[str, ...] = ()
    while True:
        number = look.skipped + table.line_num + 1  # of the record's first line: a quoted field may span several
        try:
            fields = next(table, None)
        except csv.Error as error:
            if header is None:
                raise DataError(f"{path}: line {number}: its header cannot be read: {error}") from error
            problems.add(f"line {number}", f"{error} ({_cause(error, last)})")
            continue  # the csv module goes on with the next line
        if fields is None:
            return
        # A blank line between rows; in a table of one column it may be an empty value.
        if not fields or (len(fields) == 1 and not fields[0].strip() and header is not None and len(header) > 1):
            continue
        if header is None:
            names = hints.header(fields)
            has_header = names is None
            header = [name.strip() for name in fields] if names is None else list(names)
            repeated = tuple(name for name in dict.fromkeys(header) if header.count(name) > 1)
            if has_header:
                continue
        if len(fields) != len(header):
            fields = _fitted(fields, header)
        if len(fields) != len(header):
            found = f"{len(fields)} field{'s' * (len(fields) != 1)}"
            first = "header" if has_header else "first line"
            problems.add(f"line {number}", f"{found}, where the {first} has {len(header)}")
        else:
            yield Record(f"line {number}", dict(zip(header, fields, strict=True)), repeated)


def _cause(error: csv.Error, line: str) -> str:
    if "field limit" in str(error):
        return (
            f"a text of more than {csv.field_size_limit()} characters goes into .jsonl; or a double quote that is "
            "never closed, or not doubled?"
        )
    if '\\"' in line:
        return 'a backslash does not escape a double quote in the other lines: double the quote instead ("")'
    return "a double quote that is never closed, or not doubled?"


def _fitted(fields: list[str], header: list[str]) -> list[str]:
    """Return the fields without empty ones that a delimiter at the end of the line, or of the header, makes."""
    width = len(header)
    if len(fields) > width and not any(text.strip() for text in fields[width:]):
        return fields[:width]
    return [*fields, ""] if len(fields) == width - 1 and not header[-1] else fields
