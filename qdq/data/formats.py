"""Find the format of a data file by its name, and its reader."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, TypeAlias

from qdq.data.conll import read_conll
from qdq.data.json_file import read_json
from qdq.data.opening import COMPRESSIONS
from qdq.data.table import read_table
from qdq.data.text_files import read_sentences

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from qdq.data.records import Hints, Problems, Record

__all__ = ["ARROW", "EXTENSIONS", "READERS", "TABLES", "format_of"]

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


def format_of(path: Path) -> tuple[str, str]:
    """Return the extension that says the format of a file, and the extension of its compression or an empty text.

    ``a.tsv.gz`` gives ``(".tsv", ".gz")``, and ``a.ndjson`` gives ``(".jsonl", "")``.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    compression = suffixes.pop() if suffixes and suffixes[-1] in COMPRESSIONS else ""
    extension = suffixes[-1] if suffixes else ""
    return _SAME.get(extension, extension), compression
