"""Read tables, ``.csv`` and ``.tsv``: the file is looked at first, and says how its fields are written.

1. Fields of a ``.csv`` file stand in double quotes where needed (RFC 4180). In a ``.tsv`` file a double quote is an
   ordinary character, unless the file writes all its quotes as RFC 4180 does.
2. Where RFC 4180 does not fit and a backslash before a double quote does, the backslash is an escape.
3. Semicolons, tabs, commas or bars part the fields of a file whose name says otherwise, if all its lines agree.
"""

from __future__ import annotations

import csv
import logging
import re
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from qdq.data.records import Problems, Record
from qdq.data.text_files import read_lines
from qdq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from qdq.data.records import Hints

__all__ = ["read_table"]

_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}
_BACKSLASHES = re.compile(r'(\\+)("?)')


@dataclass(frozen=True)
class Dialect:
    """How the fields of a table are written.

    Args:
        delimiter: What stands between fields.
        has_quotes: Whether fields may stand in double quotes; otherwise these are ordinary characters.
        has_escapes: Whether a backslash before a double quote makes it an ordinary character.
        has_blanks: Whether blanks after a delimiter are no part of the field, which may be in quotes after them.
    """

    delimiter: str
    has_quotes: bool
    has_escapes: bool = False
    has_blanks: bool = False

    def parse(self, lines: Iterable[str]) -> Any:
        """Return the csv module's reader of these lines."""
        escape = "\\" if self.has_escapes else None
        if self.has_escapes:
            # The csv module drops a backslash before any character. Doubling the others keeps them.
            lines = (_BACKSLASHES.sub(_double, line) if "\\" in line else line for line in lines)
        return csv.reader(
            lines,
            delimiter=self.delimiter,
            quoting=csv.QUOTE_MINIMAL if self.has_quotes else csv.QUOTE_NONE,
            escapechar=escape,
            skipinitialspace=self.has_blanks,
            strict=True,
        )


def _double(match: re.Match[str]) -> str:
    run, quote = match.groups()
    if quote and len(run) % 2:
        return "\\" * (2 * (len(run) - 1)) + '\\"'
    return "\\" * (2 * len(run)) + quote


def read_table(path: Path, problems: Problems, hints: Hints, *, delimiter: str) -> Iterator[Record]:
    """Yield the rows of a table. The file is read twice: first for its :class:`Dialect`.

    Args:
        path: The file.
        problems: Receives the problems of rows.
        hints: The header rule.
        delimiter: What stands between fields by the name of the file.

    Raises:
        DataError: The header cannot be read.
    """
    dialect = _look_at(path, delimiter, problems)
    # Their last line is needed for messages; a record may span several.
    last = ""

    def lines() -> Iterator[str]:
        nonlocal last
        for line in read_lines(path, problems):
            last = line
            yield line

    table = dialect.parse(lines())
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


# --- how a file writes its fields ---


@dataclass
class _Quotes:
    """Counts of fields with a double quote, in a file of a field between each two delimiters.

    Args:
        doubled: Fields in quotes with doubled quotes inside, as RFC 4180 writes them.
        plain: Fields in quotes without quotes inside.
        plain_with_comma: Those of them with a comma, which spreadsheets put into quotes in files with tabs, too.
        characters: Fields that RFC 4180 would have written in another way.
        bare_comma: Whether a field has a comma and no quotes.
        has_bare_header: Whether the first line has a field without quotes.
        fields: By column, all fields below the first line that are not empty, and those in quotes.
    """

    doubled: int = 0
    plain: int = 0
    plain_with_comma: int = 0
    characters: int = 0
    bare_comma: bool = False
    has_bare_header: bool = False
    fields: dict[int, list[int]] = field(default_factory=dict)

    def add(self, fields: list[str], *, is_first: bool) -> None:
        """Count the fields of a line; the first line may be a header, and says nothing about columns."""
        for number, text in enumerate(fields):
            if not text:
                continue
            inner = text[1:-1].replace('""', "")
            is_wrapped = len(text) > 1 and text[0] == text[-1] == '"' and '"' not in inner
            if is_first:
                self.has_bare_header |= not is_wrapped
            else:
                counts = self.fields.setdefault(number, [0, 0])
                counts[0] += 1
                counts[1] += is_wrapped
            if is_wrapped:
                self.doubled += '""' in text[1:-1]
                self.plain += '""' not in text[1:-1]
                self.plain_with_comma += '""' not in text[1:-1] and "," in text
            elif '"' in text:
                # A text that spans lines, or has the delimiter, begins in one piece and ends in another.
                is_begin = text[0] == '"' and '"' not in text[1:].replace('""', "")
                is_end = text[-1] == '"' and '"' not in text[:-1].replace('""', "")
                is_middle = '"' not in text.replace('""', "")
                self.characters += not (is_begin or is_end or is_middle)
            else:
                self.bare_comma |= "," in text

    @property
    def has_full_column(self) -> bool:
        """Whether a column has all its fields in quotes: three or more, or fewer below a header in quotes."""
        fewest = 3 if self.has_bare_header else 1
        return any(fewest <= count == wrapped for count, wrapped in self.fields.values())

    @property
    def are_marks(self) -> bool:
        """Whether quotes are likely the marks of RFC 4180 rather than characters."""
        if self.characters:
            return False
        of_spreadsheet = self.plain > 2 and self.plain == self.plain_with_comma and not self.bare_comma
        return self.doubled > 0 or self.has_full_column or of_spreadsheet


def _look_at(path: Path, delimiter: str, problems: Problems) -> Dialect:
    """Read the whole file and return how its fields are written; note what the name of the file does not say."""
    ignored = Problems(problems.name)  # the lines are read again, and their problems reported then
    first: dict[str, int] = {}
    has_tabs = True
    quotes = _Quotes()
    has_quotes = has_escapes = has_blanks = False
    lines = 0
    for line in read_lines(path, ignored):
        text = line.rstrip("\r\n")
        if not text.strip():
            continue
        lines += 1
        first = first or {mark: text.count(mark) for mark in _NAMES}
        has_tabs = has_tabs and text.count("\t") == first["\t"] > 0
        quotes.add(text.split("\t"), is_first=lines == 1)
        has_quotes |= '"' in text
        has_escapes |= '\\"' in text
        has_blanks |= ' "' in text
    found = delimiter
    if lines > 1 and has_tabs and first["\t"] >= first[delimiter]:
        found = "\t"  # texts have commas, but not the same number of tabs in every line
    elif lines > 1:
        found = _delimiter(path, delimiter, first)
    if found != delimiter:
        problems.note(f"{_NAMES[found]}, and not {_NAMES[delimiter]}, stand between the fields; they are read so")
    dialect = Dialect(found, has_quotes=found != "\t")
    if has_quotes and found == "\t":
        dialect = _with_quotes(path, dialect, quotes, problems)
    if has_blanks and dialect.has_quotes and _misfits(path, dialect)[0]:
        spaced = replace(dialect, has_blanks=True)
        if not _misfits(path, spaced)[0]:
            problems.note("blanks stand before fields in double quotes, and are no part of them")
            dialect = spaced
    if has_escapes and dialect.has_quotes:
        dialect = _with_escapes(path, dialect, problems)
    return dialect


def _delimiter(path: Path, named: str, first: dict[str, int]) -> str:
    """Return what stands between fields: what the name says, unless its rows do not fit and those of another do."""
    others = [mark for mark in _NAMES if mark != named and first[mark]]
    if not others or (first[named] and not _misfits(path, Dialect(named, has_quotes=named != "\t"))[0]):
        return named
    if first[named] and named == "\t":
        return named
    return next((mark for mark in others if not _misfits(path, Dialect(mark, has_quotes=True))[0]), named)


def _with_quotes(path: Path, dialect: Dialect, quotes: _Quotes, problems: Problems) -> Dialect:
    """Decide whether quotes in a file with tabs are marks around fields or characters of texts."""
    marks = replace(dialect, has_quotes=True)
    bad_marks, _ = _misfits(path, marks)
    bad_characters, _ = _misfits(path, dialect)
    # A tab or a line end in a quoted text breaks the columns where quotes are characters.
    fits = not bad_marks and (quotes.are_marks or (bad_characters and not quotes.characters))
    # A few damaged lines do not change how the others are written: they are problems of the file.
    if fits or (bad_marks + quotes.characters <= quotes.doubled // 10 and quotes.doubled):
        problems.note("texts stand in double quotes, as csv writers put them; these are not part of the texts")
        return marks
    if quotes.doubled:
        problems.note(
            f"{quotes.doubled} fields stand in double quotes with doubled quotes inside, but "
            f"{quotes.characters or bad_marks} others have quotes as characters; all quotes are read as characters",
            logging.WARNING,
        )
    elif quotes.plain > 2 or quotes.has_full_column:
        problems.note(f"{quotes.plain} fields stand in double quotes, which are read as characters of the texts")
    return dialect


def _with_escapes(path: Path, dialect: Dialect, problems: Problems) -> Dialect:
    """Decide whether a backslash before a double quote is an escape."""
    escaped = replace(dialect, has_escapes=True)
    bad, rows = _misfits(path, dialect)
    bad_escaped, rows_escaped = _misfits(path, escaped)
    # Rows that melt into one fit the header by chance; then the other way has more rows.
    if bad_escaped or (not bad and rows >= rows_escaped):
        return dialect
    problems.note('a backslash before a double quote (\\") is read as an escape: the quote is part of the text')
    return escaped


def _misfits(path: Path, dialect: Dialect) -> tuple[int, int]:
    """Return how many rows of the file do not fit a dialect and its first row, and how many there are."""
    table = dialect.parse(read_lines(path, Problems(str(path))))
    width = rows = bad = 0
    while True:
        try:
            fields = next(table, None)
        except csv.Error:
            bad += 1
            continue
        if fields is None:
            return bad, rows
        if not any(text.strip() for text in fields):
            continue
        width = width or len(fields)
        rows += 1
        bad += (
            len(fields) < width
            or any(text.strip() for text in fields[width:])
            # A quote after a blank was meant to be a mark.
            or (dialect.has_quotes and not dialect.has_blanks and any(map(_is_wrapped_after_blank, fields)))
        )


def _is_wrapped_after_blank(text: str) -> bool:
    inner = text.strip(" ")
    return text.startswith(" ") and len(inner) > 1 and inner[0] == inner[-1] == '"'
