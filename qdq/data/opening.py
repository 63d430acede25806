"""Open a data file as text, unpacking it on the way; recognize what is no text by its first bytes."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import zlib
from contextlib import contextmanager
from importlib import import_module
from typing import IO, TYPE_CHECKING, Any

from qdq.errors import DataError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["COMPRESSIONS", "is_compressed", "is_page", "open_text", "zero_byte"]

#: File name extensions of compressed files.
COMPRESSIONS = (".gz", ".bz2", ".xz", ".lzma", ".zst", ".zip")

#: How a compressed file begins, and what opens it. The bytes decide, not the name: a download may have lost its ending.
_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_ZSTANDARD = b"\x28\xb5\x2f\xfd"

#: Archives, which may hold several files, with the command that unpacks them.
_ARCHIVES = {b"PK\x03\x04": ("a zip archive", "unzip"), b"7z\xbc\xaf\x27\x1c": ("a 7z archive", "7z x")}

_MARKS = {
    "UTF-32": (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE),  # before UTF-16, whose mark begins the same
    "UTF-16": (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE),
}


@contextmanager
def open_text(path: Path) -> Iterator[IO[str]]:
    """Open a file as UTF-8, without its byte order mark and with the line ends that it has.

    A compressed file (gzip, bzip2, xz, and Zstandard from Python 3.14 on) is unpacked while it is read. A byte that is
    not UTF-8 becomes a lone surrogate, so that a message can say where it is.

    Raises:
        DataError: The file is an archive, is damaged, or is in UTF-16 or UTF-32.
        StorageError: The file cannot be read.
    """
    try:
        with _open_bytes(path) as raw:
            _check_mark(path, raw)
            with io.TextIOWrapper(raw, encoding="utf-8-sig", errors="surrogateescape", newline="") as text:
                yield text
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise DataError(f"{path}: the compressed file is damaged or incomplete ({error}); download it again") from error
    except OSError as error:
        if error.errno is None:  # bz2 reports damage so
            raise DataError(f"{path}: the compressed file is damaged ({error}); download it again") from error
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def is_compressed(path: Path) -> bool:
    """Return whether a file begins as a compressed file or an archive does."""
    begin = _first_bytes(path)
    return begin.startswith((*_OPENERS, *_ARCHIVES, _ZSTANDARD))


def is_page(path: Path) -> bool:
    """Return whether a file is an HTML page, which servers send in place of a file that they do not give.

    Raises:
        StorageError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(1024).lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    return begin.startswith((b"<!doctype html", b"<html"))


def zero_byte(path: Path, line: int, at: int) -> DataError:
    """Return the error for a text with a zero byte, which no text in UTF-8 has.

    Args:
        path: The file.
        line: The number of the line.
        at: The index of the character in the line.
    """
    with open_text(path) as file:
        begin = file.read(64)
    odd, even = begin[1::2], begin[::2]
    for name, zeros, others in (("UTF-16LE", odd, even), ("UTF-16BE", even, odd)):
        if zeros and zeros.count("\0") > 0.8 * len(zeros) and "\0" not in others:
            return DataError(
                f"{path}: line {line} is binary or in {name}: every second byte is zero; convert the file: iconv -f "
                f"{name} -t UTF-8"
            )
    return DataError(f"{path}: line {line} is binary: character {at + 1} is a zero byte; give text in UTF-8")


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(8)


def _open_bytes(path: Path) -> Any:
    begin = _first_bytes(path)
    for mark, opener in _OPENERS.items():
        if begin.startswith(mark):
            return io.BufferedReader(opener(path, "rb"))
    if begin.startswith(_ZSTANDARD):
        try:
            zstd = import_module("compression.zstd")  # of the standard library from Python 3.14 on
        except ModuleNotFoundError as error:
            raise DataError(f"{path}: is compressed with Zstandard; unpack it first: zstd -d {path.name}") from error
        return io.BufferedReader(zstd.open(path, "rb"))
    for mark, (kind, command) in _ARCHIVES.items():
        if begin.startswith(mark):
            raise DataError(f"{path}: is {kind}; unpack it first: {command} {path.name}")
    return path.open("rb")


def _check_mark(path: Path, raw: Any) -> None:
    begin = raw.peek(4)[:4]
    for name, marks in _MARKS.items():
        if begin.startswith(marks):
            raise DataError(
                f"{path}: line 1 is in {name}, by its byte order mark; convert the file: iconv -f {name} -t UTF-8"
            )
