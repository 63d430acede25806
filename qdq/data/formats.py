"""The text file formats, by extension: rows as dicts, each with the line it begins on.

1. ``.txt``: a sentence a line.
2. ``.jsonl``: a JSON object or a bare JSON string a line.
3. ``.csv``: RFC 4180, a header line, fields in double quotes where needed.
4. ``.tsv``: a header line, fields between tabs; a double quote is an ordinary character.
5. ``.conll``, ``.iob``, ``.bio``: a token a line, its tag in the last column, a blank line between sentences.

A reader notes what is wrong with a line and goes on. ``.json`` has a file of its own.
"""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from qdq.data.lines import is_unicode, read_lines
from qdq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from qdq.data.problems import Problems

__all__ = ["BARE", "READERS", "HeaderRule", "Record", "first_row_is_header", "json_type", "listing", "parse_json"]

#: The column of what has none: a line of text, a bare JSON string.
BARE = ""

#: Of the fields of a table's first row: the names of the columns when the row is data already, None when it has them.
HeaderRule: TypeAlias = "Callable[[Sequence[str]], Sequence[str] | None]"


@dataclass(frozen=True, slots=True)
class Record:
    """A row: where it stands, for messages, and its values by column. ``repeated`` names columns that come twice."""

    place: str
    values: dict[str, Any]
    repeated: tuple[str, ...] = ()


def first_row_is_header(_: Sequence[str]) -> None:
    """The rule for tables that always have a header."""


def _read_txt(path: Path, problems: Problems, _: object) -> Iterator[Record]:
    for number, line in enumerate(read_lines(path, problems), start=1):
        yield Record(f"line {number}", {BARE: line.strip()})


def _read_jsonl(path: Path, problems: Problems, _: object) -> Iterator[Record]:
    for number, line in enumerate(read_lines(path, problems), start=1):
        if not line.strip():
            continue
        place = f"line {number}"
        value = parse_json(line, place, problems)
        if isinstance(value, dict):
            yield Record(place, value)
        elif isinstance(value, str):
            yield Record(place, {BARE: value})
        elif value is not INVALID:
            problems.add(place, f"neither a JSON object nor a string but {json_type(value)}")


#: What :func:`parse_json` gives for a text that is no JSON.
INVALID = object()


def parse_json(text: str, place: str, problems: Problems) -> Any:
    """The value of a JSON text, or ``INVALID`` with a problem noted."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        problems.add(place, f"invalid JSON: {error.msg} (character {error.pos + 1})")
        return INVALID
    except (ValueError, RecursionError) as error:
        problems.add(place, f"invalid JSON: {error}")
        return INVALID
    if "\\u" in text and not _is_unicode_throughout(value):  # only an escape can bring one in
        problems.add(place, "half of a surrogate pair, which is no character")
        return INVALID
    return value


def _is_unicode_throughout(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_unicode_throughout, (*value, *value.values())))
    if isinstance(value, list):
        return all(map(_is_unicode_throughout, value))
    return not isinstance(value, str) or is_unicode(value)


def _read_table(
    path: Path,
    problems: Problems,
    header_rule: HeaderRule,
    *,
    delimiter: str,
    quoting: Literal[0, 3],
) -> Iterator[Record]:
    lines = read_lines(path, problems)
    table = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    header: list[str] | None = None
    has_header = True
    repeated: tuple[str, ...] = ()
    while True:
        number = table.line_num + 1  # of the record's first line: a quoted field may span several
        try:
            fields = next(table, None)
        except csv.Error as error:
            if header is None:
                raise DataError(f"{path}: line {number}: its header cannot be read: {error}") from error
            cause = "a double quote that is never closed, or not doubled?"
            if "field limit" in str(error):
                cause = f"a text of more than {csv.field_size_limit()} characters goes into .jsonl; or {cause}"
            problems.add(f"line {number}", f"{error} ({cause})")
            continue
        if fields is None:
            return
        if not fields or (len(fields) == 1 and not fields[0].strip() and header is not None and len(header) > 1):
            continue
        if header is None:
            names = header_rule(fields)
            has_header = names is None
            header = [name.strip() for name in fields] if names is None else list(names)
            repeated = tuple(name for name in dict.fromkeys(header) if header.count(name) > 1)
            if has_header:
                continue
        if len(fields) != len(header):
            found = f"{len(fields)} field{'s' * (len(fields) != 1)}"
            problems.add(
                f"line {number}", f"{found}, where the {'header' if has_header else 'first line'} has {len(header)}"
            )
        else:
            yield Record(f"line {number}", dict(zip(header, fields, strict=True)), repeated)


def _read_conll(path: Path, problems: Problems, _: object) -> Iterator[Record]:
    """Sentences ``tokens`` and ``ner_tags`` (the last column), and every column by its number, ``"0"`` first.

    Columns stand between tabs, or, in a line without tab, between blanks. A ``-DOCSTART-`` line and comments
    (``# name = value`` before a sentence) are passed over.
    """
    rows: list[list[str]] = []
    width = begin = 0
    for number, line in enumerate(read_lines(path, problems), start=1):
        text = line.rstrip("\r\n")
        if not text.strip():
            if rows:
                yield _sentence(rows, begin)
            rows = []
            continue
        if text.startswith("-DOCSTART-") or (not rows and text.startswith("# ") and " = " in text and "\t" not in text):
            continue
        fields = text.split("\t") if "\t" in text else text.split()
        width = width or len(fields)
        if len(fields) != width:
            problems.add(
                f"line {number}", f"{len(fields)} column{'s' * (len(fields) != 1)}, where the first line has {width}"
            )
            continue
        if not fields[0].strip():
            problems.add(f"line {number}", "a tag without a token")
            continue
        begin = begin if rows else number
        rows.append(fields)
    if rows:
        yield _sentence(rows, begin)


def _sentence(rows: list[list[str]], begin: int) -> Record:
    columns = [list(column) for column in zip(*rows, strict=True)]
    values: dict[str, Any] = {"tokens": columns[0]}
    if len(columns) > 1:
        values["ner_tags"] = columns[-1]
    return Record(f"line {begin}", values | {str(n): column for n, column in enumerate(columns)})


Reader: TypeAlias = "Callable[[Path, Problems, HeaderRule], Iterator[Record]]"

READERS: dict[str, Reader] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".csv": partial(_read_table, delimiter=",", quoting=csv.QUOTE_MINIMAL),
    ".tsv": partial(_read_table, delimiter="\t", quoting=csv.QUOTE_NONE),
    ".conll": _read_conll,
    ".iob": _read_conll,
    ".bio": _read_conll,
}


def listing(names: Sequence[str]) -> str:
    """Names in quotes, for messages."""
    return ", ".join(repr(name) for name in names)


def json_type(value: Any) -> str:
    """What JSON calls a value, with its article."""
    kinds = {
        bool: "a boolean",
        int: "a number",
        float: "a number",
        str: "a string",
        list: "an array",
        dict: "an object",
    }
    return kinds.get(type(value), "null" if value is None else f"a {type(value).__name__}")
