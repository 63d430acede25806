"""Read text files line by line: UTF-8, one line in memory at a time.

1. ``.txt``: one sentence on each line.
2. ``.jsonl``: one JSON object or bare JSON string on each line.

A reader reports the problem of a line and goes on with the next one. Tables (:mod:`qdq.data.table`), words with tags
(:mod:`qdq.data.conll`) and ``.json`` files (:mod:`qdq.data.json_file`) have modules of their own.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from qdq.data.opening import open_text, zero_byte
from qdq.data.records import BARE, Record, json_type
from qdq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from qdq.data.records import Problems

__all__ = [
    "CHUNK",
    "INVALID",
    "MAX_LINE",
    "is_unicode",
    "parse_json",
    "read_chunks",
    "read_json_lines",
    "read_lines",
    "read_sentences",
]


#: Characters that are read at a time from a file without lines.
CHUNK = 1 << 16

#: The longest line in characters. No sentence is this long: the file is of another kind, and not worth the memory.
MAX_LINE = 1 << 24


def read_lines(path: Path, problems: Problems) -> Iterator[str]:
    """Yield the lines of a UTF-8 file with their line ends, without a byte order mark; unpack a compressed file.

    1. A byte that is not UTF-8 is reported as a problem of its line, with the encoding that would read it. Reading
       goes on.
    2. UTF-16, UTF-32, a zero byte, or a line longer than :data:`MAX_LINE` ends the reading.

    Args:
        path: The file.
        problems: Receives the problems of case 1.

    Raises:
        DataError: Case 2, or a compressed file that is damaged.
        StorageError: The file cannot be read.
    """
    with open_text(path) as file:
        first_beyond_ascii = 0
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), ""), start=1):
            if "\0" in line:
                raise zero_byte(path, number, line.index("\0"))
            if len(line) == MAX_LINE:
                raise DataError(f"{path}: line {number} is longer than {MAX_LINE} characters; split it")
            if not line.isascii():
                if not is_unicode(line):
                    problems.add(f"line {number}", _undecodable(line, first_beyond_ascii))
                elif not first_beyond_ascii:
                    first_beyond_ascii = number
            yield line


def read_chunks(path: Path) -> Iterator[str]:
    """Yield the text of a UTF-8 file, :data:`CHUNK` characters at a time.

    Raises:
        DataError: The file is binary or in another encoding, or a compressed file is damaged.
        StorageError: The file cannot be read.
    """
    with open_text(path) as file:
        line = 1
        while chunk := file.read(CHUNK):
            if "\0" in chunk:
                at = chunk.index("\0")
                raise zero_byte(path, line + chunk.count("\n", 0, at), at - chunk.rfind("\n", 0, at) - 1)
            if not is_unicode(chunk):
                at = next(at for at, character in enumerate(chunk) if "\ud800" <= character <= "\udfff")
                begin = chunk.rfind("\n", 0, at) + 1
                problem = _undecodable(chunk[begin : at + CHUNK // 16], 0)
                raise DataError(f"{path}: line {line + chunk.count(chr(10), 0, at)}: {problem}")
            line += chunk.count("\n")
            yield chunk


def is_unicode(text: str) -> bool:
    """Return whether a text can be encoded as UTF-8, which lone surrogates cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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


def read_sentences(path: Path, problems: Problems, _: object) -> Iterator[Record]:
    """Yield a record for each line of a ``.txt`` file."""
    for number, line in enumerate(read_lines(path, problems), start=1):
        yield Record(f"line {number}", {BARE: line.strip()})


def read_json_lines(path: Path, problems: Problems, _: object) -> Iterator[Record]:
    """Yield a record for each line that is not blank: a JSON object, a bare string, or ``null``, which has no text."""
    for number, line in enumerate(read_lines(path, problems), start=1):
        if not line.strip():
            continue
        location = f"line {number}"
        value = parse_json(line, location, problems)
        if isinstance(value, dict):
            yield Record(location, value)
        elif isinstance(value, str) or value is None:
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
