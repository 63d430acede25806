"""The text file formats, by extension: rows of (text, second text) out of lines.

1. ``.txt``: a sentence a line.
2. ``.jsonl``: a JSON object or a bare JSON string a line.
3. ``.csv``: RFC 4180, a header line, fields in double quotes where needed.
4. ``.tsv``: a header line, fields between tabs; a double quote is an ordinary character.

A reader yields ``(line number, row)`` or, for a line it cannot use, ``(line number, fault)``, and goes on.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from qdq.errors import DataError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

__all__ = ["READERS", "Columns", "Fault", "Row", "read_lines"]

Row = tuple[str, str | None]
Fault = str

#: Column names of public datasets; the first row of this table whose columns all exist applies.
DEFAULT_COLUMNS: tuple[Row, ...] = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "context"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("query", "passage"),
    ("text", None),
    ("sentence", None),
    ("question", None),
    ("query", None),
    ("passage", None),
)

#: No sentence is this long (in characters): a longer line is a file of another kind, not worth the memory.
MAX_LINE = 1 << 24


@dataclass(frozen=True)
class Columns:
    """The columns asked for in a file; ``None`` where nothing was asked."""

    path: Path
    text: str | None
    pair: str | None

    @property
    def are_named(self) -> bool:
        """Whether any column was asked for by name."""
        return self.text is not None or self.pair is not None

    def settle(self, available: Sequence[str]) -> Row:
        """The columns to read, all of them among ``available``; the usual public names where none was asked for."""
        text, pair = self.text, self.pair
        if text is None:
            usual = (row for row in DEFAULT_COLUMNS if set(row) - {None} <= set(available))
            text, usual_pair = next(usual, (None, None))
            pair = pair or usual_pair
        if text is None:
            raise DataError(
                f"{self.path}: none of its columns {_listing(available)} has a usual name for text; "
                "name one with --text-column"
            )
        wanted = [name for name in (text, pair) if name is not None]
        if missing := [name for name in wanted if name not in available]:
            raise DataError(f"{self.path}: no column {_listing(missing)}; its columns are {_listing(available)}")
        if repeated := [name for name in wanted if available.count(name) > 1]:
            raise DataError(f"{self.path}: more than one column is called {_listing(repeated)}; rename all but one")
        return text, pair


def read_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file, with their ends. What is not text stops the reading: the rest cannot be trusted."""
    try:
        # Undecodable bytes arrive as lone surrogates, so the line they stand in can be named.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), ""), start=1):
                if "\0" in line or not _is_unicode(line):
                    raise DataError(f"{path}: line {number} is binary or in another encoding; give text in UTF-8")
                if len(line) == MAX_LINE:
                    raise DataError(f"{path}: line {number} is longer than {MAX_LINE} characters; split it")
                yield line
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def _read_txt(lines: Iterator[str], _: Columns) -> Iterator[tuple[int, Row | Fault]]:
    for number, line in enumerate(lines, start=1):
        yield number, (line.strip(), None)


def _read_jsonl(lines: Iterator[str], columns: Columns) -> Iterator[tuple[int, Row | Fault]]:
    settled: Row | None = None
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            yield number, f"invalid JSON: {error.msg} (character {error.pos + 1})"
            continue
        except (ValueError, RecursionError) as error:
            yield number, f"invalid JSON: {error}"
            continue
        if isinstance(value, dict) and settled is None:
            settled = columns.settle(list(value))
        yield number, _row_of_json(value, settled, columns)


def _row_of_json(value: Any, settled: Row | None, columns: Columns) -> Row | Fault:
    if isinstance(value, str):
        if columns.are_named:
            return "a bare string, where an object with the named column was expected"
        return (value, None) if _is_unicode(value) else "half of a surrogate pair, which is no character"
    if not isinstance(value, dict) or settled is None:
        return f"neither a JSON object nor a string but {_json_type(value)}"
    name, pair_name = settled
    if missing := [key for key in settled if key is not None and key not in value]:
        return f"no key {_listing(missing)}; it has {_listing(list(value))}"
    text, pair = value[name], None if pair_name is None else value[pair_name]
    if not isinstance(text, str):
        return f"{name!r} is {_json_type(text)}, not text"
    if not isinstance(pair, str | None):
        return f"{pair_name!r} is {_json_type(pair)}, not text"
    return (text, pair) if _is_unicode(text + (pair or "")) else "half of a surrogate pair, which is no character"


def _read_table(
    lines: Iterator[str], columns: Columns, *, delimiter: str, quoting: Literal[0, 3]
) -> Iterator[tuple[int, Row | Fault]]:
    table = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    header: list[str] | None = None
    at = at_pair = 0
    has_pair = False
    while True:
        number = table.line_num + 1  # of the record's first line: a quoted field may span several
        try:
            fields = next(table, None)
        except csv.Error as error:
            if header is None:
                raise DataError(f"{columns.path}: line {number}: its header cannot be read: {error}") from error
            yield number, f"{error} (a double quote that is never closed, or not doubled?)"
            continue
        if fields is None:
            return
        if not fields:
            continue
        if header is None:
            header = [name.strip() for name in fields]
            name, pair_name = columns.settle(header)
            has_pair = pair_name is not None
            at, at_pair = header.index(name), header.index(pair_name) if pair_name is not None else 0
        elif len(fields) != len(header):
            yield number, f"{len(fields)} fields, where the header has {len(header)}"
        else:
            yield number, (fields[at], fields[at_pair] if has_pair else None)


READERS: dict[str, Callable[[Iterator[str], Columns], Iterator[tuple[int, Row | Fault]]]] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".csv": partial(_read_table, delimiter=",", quoting=csv.QUOTE_MINIMAL),
    ".tsv": partial(_read_table, delimiter="\t", quoting=csv.QUOTE_NONE),
}


def _is_unicode(text: str) -> bool:
    """Whether the text can be encoded: lone surrogates are no characters."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _listing(names: Sequence[str]) -> str:
    return ", ".join(repr(name) for name in names)


def _json_type(value: Any) -> str:
    kinds = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return kinds.get(type(value), "null")
