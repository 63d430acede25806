"""Lines of text files: UTF-8, one at a time, and exact words about what is no text."""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING

from qdq.errors import DataError, StorageError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from qdq.data.problems import Problems

__all__ = ["CHUNK", "MAX_LINE", "is_unicode", "read_chunks", "read_lines"]

#: What is read of a file at a time where it has no lines, in characters.
CHUNK = 1 << 16

#: No sentence is this long (in characters): a longer line is a file of another kind, not worth the memory.
MAX_LINE = 1 << 24

_MARKS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),  # before UTF-16, whose mark begins the same
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}


def read_lines(path: Path, problems: Problems) -> Iterator[str]:
    """The lines of a UTF-8 file, with their ends; a byte order mark is dropped.

    1. A byte that is not UTF-8 is a problem of its line, told with what would read it; reading goes on behind it.
    2. A file in UTF-16 or UTF-32, a zero byte, or a line beyond :data:`MAX_LINE` ends the reading.

    Raises:
        DataError: Case 2.
        StorageError: The file cannot be read.
    """
    try:
        _check_mark(path)
        # Undecodable bytes arrive as lone surrogates, so the place they stand at can be named.
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
    """The text of a UTF-8 file, :data:`CHUNK` characters at a time, whatever its lines.

    Raises:
        DataError: It is binary or in another encoding.
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
    """Whether the text can be encoded: lone surrogates are no characters."""
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
    """What stands in a line that is not UTF-8; ``utf8_line`` is an earlier line that is, beyond ASCII, or 0."""
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
