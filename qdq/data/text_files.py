"""Read text files of rows: UTF-8, one line in memory at a time.

1. ``.txt``: one sentence on each line.
2. ``.jsonl``: one JSON object or bare JSON string on each line.
3. ``.csv``: RFC 4180 with a header line; fields are in double quotes where needed.
4. ``.tsv``: a header line, and fields separated by tabs; a double quote is an ordinary character.
5. ``.conll``, ``.iob``, ``.bio``: one token on each line, its tag in the last column, a blank line between sentences.

A reader reports the problem of a line and goes on with the next one. ``.json`` files, whose values span lines, have a
module of their own (:mod:`qdq.data.json_file`).
"""

from __future__ import annotations

import codecs
import csv
import json
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from qdq.data.records import BARE, Record, json_type
from qdq.errors import DataError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from qdq.data.records import HeaderRule, Problems

__all__ = ["CHUNK", "MAX_LINE", "READERS", "is_unicode", "parse_json", "read_chunks", "read_lines"]


#: Characters that are read at a time from a file without lines.
CHUNK = 1 << 16

#: The longest line in characters. No sentence is this long: the file is of another kind, and not worth the memory.
MAX_LINE = 1 << 24

_MARKS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),  # before UTF-16, whose mark begins the same
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}


def read_lines(path: Path, problems: Problems) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their line ends, without a byte order mark.

    1. A byte that is not UTF-8 is reported as a problem of its line, with the encoding that would read it. Reading
       goes on.
    2. UTF-16, UTF-32, a zero byte, or a line longer than :data:`MAX_LINE` ends the reading.

    Args:
        path: The file.
        problems: Receives the problems of case 1.

    Raises:
        DataError: Case 2.
        StorageError: The file cannot be read.
    """
    try:
        _check_mark(path)
        # surrogateescape turns a byte that is not UTF-8 into a lone surrogate, so the message can say where it is.
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            first_beyond_ascii = 0
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), ""), start=1):
                if "\0" in line:
                    raise _binary(path, number, line.index("\0"))
                if len(line) == MAX_LINE:
                    raise DataError(f"{path}: line {number} is longer than {MAX_LINE} characters; split it")
                if not line.isascii():
                    if not is_unicode(line):
                        problems.add(f"line {number}", _undecodable(line, first_beyond_ascii))
                    elif not first_beyond_ascii:
                        first_beyond_ascii = number
                yield line
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def read_chunks(path: Path) -> Iterator[str]:
    """Yield the text of a UTF-8 file, :data:`CHUNK` characters at a time.

    Raises:
        DataError: The file is binary or in another encoding.
        StorageError: The file cannot be read.
    """
    try:
        _check_mark(path)
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            line = 1
            while chunk := file.read(CHUNK):
                if "\0" in chunk:
                    at = chunk.index("\0")
                    raise _binary(path, line + chunk.count("\n", 0, at), at - chunk.rfind("\n", 0, at) - 1)
                if not is_unicode(chunk):
                    at = next(at for at, character in enumerate(chunk) if "\ud800" <= character <= "\udfff")
                    begin = chunk.rfind("\n", 0, at) + 1
                    problem = _undecodable(chunk[begin : at + CHUNK // 16], 0)
                    raise DataError(f"{path}: line {line + chunk.count(chr(10), 0, at)}: {problem}")
                line += chunk.count("\n")
                yield chunk
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def is_unicode(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8, which lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _binary(path: Path, line: int, at: int) -> DataError:
    return DataError(f"{path}: line {line} is binary: character {at + 1} is a zero byte; give text in UTF-8")


def _check_mark(path: Path) -> None:
    with path.open("rb") as file:
        begin = file.read(4)
    for name, marks in _MARKS.items():
        if begin.startswith(marks):
            raise DataError(
                f"{path}: line 1 is in {name}, by its byte order mark; convert the file: iconv -f {name} -t UTF-8"
            )


def _undecodable(line: str, utf8_line: int) -> str:
    """Describe the first byte of a line that is not UTF-8.

    Args:
        line: The line, with surrogates for such bytes.
        utf8_line: The number of an earlier line that is UTF-8 and not plain ASCII, or 0.
    """
    at, character = next((at, c) for at, c in enumerate(line) if "\udc80" <= c <= "\udcff")
    raw = line.encode("utf-8", "surrogateescape")
    try:
        raw.decode("cp1252")
        reader = "cp1252"
    except UnicodeDecodeError:
        reader = "latin-1"
    mixed = f"; line {utf8_line} is UTF-8: the file mixes two encodings" if utf8_line else ""
    return (
        f"byte 0x{ord(character) - 0xDC00:02x} at character {at + 1} is binary or another encoding, not UTF-8; "
        f"as text it would read in {reader} (iconv -f {reader} -t UTF-8){mixed}"
    )


def _read_txt(path: Path, problems: Problems, _: object) -> Iterator[Record]:
    for number, line in enumerate(read_lines(path, problems), start=1):
        yield Record(f"line {number}", {BARE: line.strip()})


def _read_jsonl(path: Path, problems: Problems, _: object) -> Iterator[Record]:
    for number, line in enumerate(read_lines(path, problems), start=1):
        if not line.strip():
            continue
        location = f"line {number}"
        value = parse_json(line, location, problems)
        if isinstance(value, dict):
            yield Record(location, value)
        elif isinstance(value, str):
            yield Record(location, {BARE: value})
        elif value is not INVALID:
            problems.add(location, f"neither a JSON object nor a string but {json_type(value)}")


#: What :func:`parse_json` returns for a text that is not JSON.
INVALID = object()


def parse_json(text: str, location: str, problems: Problems) -> Any:
    """Return the value of a JSON text, or report a problem and return ``INVALID``."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        problems.add(location, f"invalid JSON: {error.msg} (character {error.pos + 1})")
        return INVALID
    except (ValueError, RecursionError) as error:
        problems.add(location, f"invalid JSON: {error}")
        return INVALID
    if "\\u" in text and not _is_unicode_throughout(value):  # only an escape can write a lone surrogate
        problems.add(location, "half of a surrogate pair, which is not a character")
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
            continue  # the csv module goes on with the next line
        if fields is None:
            return
        # A blank line between rows; in a table of one column it may be an empty value.
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
    """Yield a record for each sentence: ``tokens``, ``ner_tags`` (the last column), and all columns by their numbers.

    The first column has the number ``"0"``. Columns are separated by tabs or, in a line without a tab, by blanks. Lines
    that begin with ``-DOCSTART-`` and comments (``# name = value`` before a sentence) are skipped.
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
        # All lines of a file must have the columns of its first one.
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


#: Yields the records of a file and reports the problems of its rows.
Reader: TypeAlias = "Callable[[Path, Problems, HeaderRule], Iterator[Record]]"

#: The reader of each file name extension.
READERS: dict[str, Reader] = {
    ".txt": _read_txt,
    ".jsonl": _read_jsonl,
    ".csv": partial(_read_table, delimiter=",", quoting=csv.QUOTE_MINIMAL),
    ".tsv": partial(_read_table, delimiter="\t", quoting=csv.QUOTE_NONE),
    ".conll": _read_conll,
    ".iob": _read_conll,
    ".bio": _read_conll,
}
