"""Look at a whole table, once for each version of its file, and say how its fields are written.

1. Fields of a ``.csv`` file stand in double quotes where needed (RFC 4180). In a ``.tsv`` file a double quote is an
   ordinary character, unless the file writes all its quotes as RFC 4180 does.
2. Where RFC 4180 does not fit and a backslash before a double quote does, the backslash is an escape.
3. Semicolons, tabs, commas or bars part the fields of a file whose name says otherwise, if all its lines agree, or if
   its first line says so, as Excel writes it (``sep=;``).
"""

from __future__ import annotations

import csv
import logging
import re
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import TYPE_CHECKING, Any

from qdq.data.looks import once_a_version
from qdq.data.opening import open_text
from qdq.data.records import Problems
from qdq.data.text_files import CHUNK, read_lines

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["Dialect", "TableLook", "look_at_table"]

_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "bars"}

#: The first line that Excel reads as a delimiter, and no row.
_EXCEL = re.compile(r'"?sep=([,\t;|])"?\s*')

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
        wrapped: By column, the fields below the first line that are in quotes.
        bare: The columns with a field below the first line that is neither empty nor in quotes.
    """

    doubled: int = 0
    plain: int = 0
    plain_with_comma: int = 0
    characters: int = 0
    bare_comma: bool = False
    has_bare_header: bool = False
    wrapped: Counter[int] = field(default_factory=Counter)
    bare: set[int] = field(default_factory=set)

    def add(self, text: str, *, is_first: bool) -> None:
        """Count the fields of a line; the first line may be a header, and says nothing about columns."""
        if '"' not in text and not is_first:
            self.bare_comma = self.bare_comma or "," in text
            # Nearly all lines of nearly all files end here.
            if len(self.bare) <= text.count("\t"):
                self.bare.update(number for number, part in enumerate(text.split("\t")) if part)
            return
        for number, part in enumerate(text.split("\t")):
            if part:
                self._add_field(number, part, is_first=is_first)

    def _add_field(self, number: int, text: str, *, is_first: bool) -> None:
        inner = text[1:-1].replace('""', "")
        is_wrapped = len(text) > 1 and text[0] == text[-1] == '"' and '"' not in inner
        if is_first:
            self.has_bare_header |= not is_wrapped
        elif is_wrapped:
            self.wrapped[number] += 1
        else:
            self.bare.add(number)
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
        return any(count >= fewest and number not in self.bare for number, count in self.wrapped.items())

    @property
    def are_marks(self) -> bool:
        """Whether quotes are likely the marks of RFC 4180 rather than characters."""
        if self.characters:
            return False
        of_spreadsheet = self.plain > 2 and self.plain == self.plain_with_comma and not self.bare_comma
        return self.doubled > 0 or self.has_full_column or of_spreadsheet


@dataclass(frozen=True)
class TableLook:
    """What a look at a table found.

    Args:
        dialect: How its fields are written.
        skipped: Lines before the header, 0 or 1.
        notes: What its user should know, with the level of each note.
    """

    dialect: Dialect
    skipped: int
    notes: tuple[tuple[str, int], ...]


class _Lines:
    """What the lines of a table have in common, and how often its rows do not fit, for the dialect of its name.

    Args:
        path: The file, which is read once.
        delimiter: What stands between fields by the name of the file.
    """

    def __init__(self, path: Path, delimiter: str) -> None:
        self.path = path
        self.count = 0
        #: By delimiter, how often the first line has it; only those that it has, and that of the name.
        self.first: dict[str, int] = {}
        #: By delimiter, the lines that have other columns than the first one, quotes being ordinary characters.
        self.bad: dict[str, int] = {}
        self.has_same_tabs = True
        self.quotes = _Quotes()
        self.has_quotes = self.has_escapes = self.has_blanks = False
        self.skipped = 0
        self.delimiter = delimiter
        self._marks: dict[str, int] = {}
        self._misfits: dict[Dialect, tuple[int, int]] = {}
        self._read()

    def misfits(self, dialect: Dialect) -> tuple[int, int]:
        """Return how many rows of the file do not fit a dialect and its first row, and how many there are."""
        if not dialect.has_quotes or not self.has_quotes:
            return self.bad.get(dialect.delimiter, 0), self.count
        if dialect not in self._misfits:
            lines = read_lines(self.path, Problems(str(self.path)))
            self._misfits[dialect] = _misfits(dialect, islice(lines, self.skipped, None), 0)
        return self._misfits[dialect]

    def _read(self) -> None:
        # Their problems are reported when the lines are read again.
        lines = read_lines(self.path, Problems(str(self.path)))
        before = 0
        for number, line in enumerate(lines):
            if not number and (match := _EXCEL.fullmatch(line)):
                self.delimiter, self.skipped = match[1], 1
                continue
            if '"' in line:
                break
            self._add(line)
            before = self.count
        else:
            return
        # From here on a row may span lines. Before, a line is a row, and its bad ones are counted.
        dialect = Dialect(self.delimiter, has_quotes=True)
        bad = self.bad.get(self.delimiter, 0)
        width = self.first.get(self.delimiter, 0) + 1 if before else 0
        found, rows = _misfits(dialect, self._added(chain([line], lines)), width)
        self._misfits[dialect] = bad + found, before + rows

    def _added(self, lines: Iterable[str]) -> Iterator[str]:
        for line in lines:
            self._add(line)
            yield line

    def _add(self, line: str) -> None:
        text = line.rstrip("\r\n")
        if not text or text.isspace():
            return
        self.count += 1
        if self.count == 1:
            self.first = {mark: text.count(mark) for mark in _NAMES if mark in text or mark == self.delimiter}
            self._marks = dict(self.first)
            self.bad = dict.fromkeys(self.first, 0)
            self.has_same_tabs = self.first.get("\t", 0) > 0
        for mark, count in self._marks.items():
            if text.count(mark) != count:
                self.bad[mark] += not _fits(text.split(mark), count + 1)
                self.has_same_tabs = self.has_same_tabs and mark != "\t"
        if "\t" in self.first:
            self.quotes.add(text, is_first=self.count == 1)
        if '"' in text:
            if not self.has_quotes:
                # Only in files with tabs can quotes be ordinary characters.
                self._marks = {mark: count for mark, count in self._marks.items() if mark == "\t"}
            self.has_quotes = True
            self.has_escapes = self.has_escapes or '\\"' in text
            self.has_blanks = self.has_blanks or ' "' in text


@once_a_version
def look_at_table(path: Path, delimiter: str) -> TableLook:
    """Look at a whole file and return how its fields are written, with notes on what its name does not say.

    Files with backslashes before quotes, or whose rows do not fit what the name says, are read another time.

    Args:
        path: The file.
        delimiter: What stands between fields by the name of the file.
    """
    if _is_plain(path, delimiter):
        return TableLook(Dialect(delimiter, has_quotes=delimiter != "\t"), 0, ())
    problems = Problems(str(path))
    lines = _Lines(path, delimiter)
    found = named = lines.delimiter
    first = lines.first
    if lines.skipped:
        problems.note(f"its first line says that {_NAMES[named]} stand between the fields; it is passed over")
    elif lines.count > 1 and lines.has_same_tabs and first["\t"] >= first[named]:
        found = "\t"  # texts have commas, but not the same number of tabs in every line
    elif lines.count > 1:
        found = _delimiter(lines)
    if found != named:
        problems.note(f"{_NAMES[found]}, and not {_NAMES[named]}, stand between the fields; they are read so")
    dialect = Dialect(found, has_quotes=found != "\t")
    if lines.has_quotes and found == "\t":
        dialect = _with_quotes(lines, dialect, problems)
    if lines.has_blanks and dialect.has_quotes and lines.misfits(dialect)[0]:
        spaced = replace(dialect, has_blanks=True)
        if not lines.misfits(spaced)[0]:
            problems.note("blanks stand before fields in double quotes, and are no part of them")
            dialect = spaced
    if lines.has_escapes and dialect.has_quotes:
        dialect = _with_escapes(lines, dialect, problems)
    return TableLook(dialect, lines.skipped, tuple(problems.notes.items()))


def _is_plain(path: Path, delimiter: str) -> bool:
    """Return whether the first line and the absence of certain quotes decide, as in most files.

    A search through the text takes a tenth of the time that a look at each line takes.
    """
    first = next((line for line in read_lines(path, Problems(str(path))) if line.strip()), "")
    if delimiter not in first or _EXCEL.fullmatch(first):
        return False
    if delimiter != "\t" and any(mark in first for mark in _NAMES if mark != delimiter):
        return False
    # Where quotes are marks anyway, only blanks or backslashes before them leave something to decide.
    sought = ('"',) if delimiter == "\t" else (' "', '\\"')
    last = ""
    with open_text(path) as file:
        while chunk := file.read(CHUNK):
            if any(mark in chunk or mark in last + chunk[:1] for mark in sought):
                return False
            last = chunk[-1]
    return True


def _delimiter(lines: _Lines) -> str:
    """Return what stands between fields: what the name says, unless its rows do not fit and those of another do."""
    named = lines.delimiter
    others = [mark for mark in lines.first if mark != named]
    if not others or (lines.first[named] and named == "\t"):
        return named
    if lines.first[named] and not lines.misfits(Dialect(named, has_quotes=True))[0]:
        return named
    return next((mark for mark in others if not lines.misfits(Dialect(mark, has_quotes=True))[0]), named)


def _with_quotes(lines: _Lines, dialect: Dialect, problems: Problems) -> Dialect:
    """Decide whether quotes in a file with tabs are marks around fields or characters of texts."""
    quotes = lines.quotes
    marks = replace(dialect, has_quotes=True)
    bad_marks, _ = lines.misfits(marks)
    bad_characters, _ = lines.misfits(dialect)
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


def _with_escapes(lines: _Lines, dialect: Dialect, problems: Problems) -> Dialect:
    """Decide whether a backslash before a double quote is an escape."""
    escaped = replace(dialect, has_escapes=True)
    bad, rows = lines.misfits(dialect)
    bad_escaped, rows_escaped = lines.misfits(escaped)
    # Rows that melt into one fit the header by chance; then the other way has more rows.
    if bad_escaped or (not bad and rows >= rows_escaped):
        return dialect
    problems.note('a backslash before a double quote (\\") is read as an escape: the quote is part of the text')
    return escaped


def _misfits(dialect: Dialect, lines: Iterable[str], width: int) -> tuple[int, int]:
    """Return how many rows do not fit a dialect and the number of columns, and how many there are.

    Args:
        dialect: How fields are written.
        lines: The lines.
        width: The number of columns; 0 for that of the first row.
    """
    table = dialect.parse(lines)
    looks_for_blanks = dialect.has_quotes and not dialect.has_blanks
    rows = bad = 0
    while True:
        try:
            fields = next(table, None)
        except csv.Error:
            bad += 1
            continue
        if fields is None:
            return bad, rows
        if not fields or not (fields[0].strip() or any(text.strip() for text in fields)):
            continue
        width = width or len(fields)
        rows += 1
        # A quote after a blank was meant to be a mark.
        if not _fits(fields, width) or (looks_for_blanks and any(map(_is_wrapped_after_blank, fields))):
            bad += 1


def _fits(fields: list[str], width: int) -> bool:
    """Return whether a row has so many fields; more that are empty come from a delimiter at the end of the line."""
    if len(fields) == width:
        return True
    if len(fields) > width:
        return not any(text.strip() for text in fields[width:])
    return not any(text.strip() for text in fields)


def _is_wrapped_after_blank(text: str) -> bool:
    if not text.startswith(" "):
        return False
    inner = text.strip(" ")
    return len(inner) > 1 and inner[0] == inner[-1] == '"'
