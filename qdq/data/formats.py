"""Find the format of a data file by its name, and its reader."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from qdq.data.conll import looks_like_conll, read_conll
from qdq.data.json_file import read_json
from qdq.data.opening import COMPRESSIONS
from qdq.data.records import Problems
from qdq.data.table import read_table
from qdq.data.text_files import CHUNK, read_lines, read_sentences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from qdq.data.records import Hints, Record

__all__ = ["ARROW", "EXTENSIONS", "READERS", "TABLES", "format_inside", "format_of"]

#: Yields the records of a file and reports the problems of its rows.
Reader: TypeAlias = "Callable[[Path, Problems, Hints], Iterator[Record]]"

#: The reader of each file name extension.
READERS: dict[str, Reader] = {
    ".txt": read_sentences,
    ".jsonl": partial(read_json, is_lines=True),
    ".csv": partial(read_table, delimiter=","),
    ".tsv": partial(read_table, delimiter="\t"),
    ".conll": read_conll,
    ".iob": read_conll,
    ".bio": read_conll,
    ".json": read_json,
}

#: Other usual endings of the same formats.
_SAME = {
    ".ndjson": ".jsonl",
    ".jsonlines": ".jsonl",
    ".ldjson": ".jsonl",
    ".tab": ".tsv",
    ".iob2": ".conll",
    ".bioes": ".conll",
}

#: Files of columns, which need the package pyarrow.
ARROW = (".parquet", ".arrow", ".feather")

#: Tables, whose first line may be a header or data.
TABLES = (".csv", ".tsv")

#: The file name extensions that are read, and may be followed by that of a compressed file.
EXTENSIONS = (*READERS, *ARROW)

#: Lines of a text that are looked at for its format, and how few of them say nothing.
_LINES_TO_LOOK_AT = 2000
_TOO_FEW_LINES = 6


def format_of(path: Path) -> tuple[str, str]:
    """Return the extension that says the format of a file, and the extension of its compression or an empty text.

    ``a.tsv.gz`` gives ``(".tsv", ".gz")``, and ``a.ndjson`` gives ``(".jsonl", "")``.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    extension = suffixes[-1] if suffixes else ""
    return _SAME.get(extension, extension), compression


def format_inside(path: Path, *, words: bool) -> str:
    """Return the extension that would suit a ``.txt`` file better, by its first lines, or an empty text.

    Args:
        path: The file.
        words: Whether words with tags are wanted.
    """
    lines: list[str] = []
    length = 0
    for line in read_lines(path, Problems(str(path))):
        lines.append(line.rstrip("\r\n"))
        length += len(line)
        if len(lines) == _LINES_TO_LOOK_AT or length > CHUNK:
            break
    if looks_like_conll(lines, words=words):
        return ".conll"
    filled = [line for line in lines if line.strip()]
    if len(filled) < _TOO_FEW_LINES:
        return ""
    if len({line.count("\t") for line in filled}) == 1 and "\t" in filled[0]:
        return ".tsv"
    return ".jsonl" if all(line.lstrip().startswith("{") and _is_json(line) for line in filled) else ""


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True
