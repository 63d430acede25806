"""Where rows come from: files of every kind, saved datasets, Python iterables, random text. Rows stream."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from qdq.data.formats import BARE, READERS, HeaderRule, Record, first_row_is_header
from qdq.data.json_file import read_json
from qdq.data.problems import Problems
from qdq.data.random_text import random_rows
from qdq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["EXTENSIONS", "Record", "Source", "SourceLike", "open_source"]

SourceLike: TypeAlias = str | os.PathLike[str] | Iterable[Any]

_LOG = logging.getLogger(__name__)

_RANDOM = "random:"

#: What the core reads by itself, and what the package ``datasets`` reads.
EXTENSIONS = (*READERS, ".json", ".parquet")

_TUPLE_COLUMNS = ("text", "text_pair", "label")


class Source:
    """Rows of one origin, in their order. A file can be read again and again; an iterator once.

    Args:
        name: The origin, for messages.
        read: A new pass over the rows, which notes the problems it meets.
        class_names: The names behind the numbers of a column, where the file knows them (``ClassLabel``).
    """

    def __init__(
        self,
        name: str,
        read: Callable[[Problems], Iterator[Record]],
        *,
        class_names: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.name = name
        self.class_names = dict(class_names or {})
        self._read = read

    def records(self, problems: Problems) -> Iterator[Record]:
        """A pass over the rows; the caller looks after the problems."""
        return self._read(problems)

    def __iter__(self) -> Iterator[Record]:
        """A pass over the rows. From the first problem on nothing comes but, at the end, the error that tells them all.

        Raises:
            DataError: Lines that cannot be read.
        """
        problems = Problems(self.name)
        for record in self._read(problems):
            if not problems:
                yield record
        problems.raise_if_any()


def open_source(
    source: SourceLike,
    *,
    split: str | None = None,
    header: HeaderRule = first_row_is_header,
) -> Source:
    """The rows of anything that holds rows.

    1. A file: ``.txt``, ``.jsonl``, ``.csv``, ``.tsv``, ``.conll`` (``.iob``, ``.bio``), ``.json`` (SQuAD's too), and,
       with the package ``datasets``, ``.parquet``.
    2. A directory that ``datasets`` saved (``save_to_disk``); of several splits, ``split`` names the one.
    3. ``random:N``: N rows of random letters, for smoke tests and timing; never what a path that is wrong becomes.
    4. A Python iterable of texts, of tuples (text, second text), (text, label that is no text) or (text, second
       text, label), or of dicts.

    Args:
        source: One of these.
        split: Of case 2 only.
        header: For ``.csv`` and ``.tsv``: given the fields of the first row, the names of the columns when that row is
            data already, or None when it is the header.

    Raises:
        DataError: It is none of these, or the file is missing or of an unknown extension.
        MissingPackageError: It takes the package ``datasets``, which is not installed.
    """
    if isinstance(source, str) and source.startswith(_RANDOM):
        return _random(source)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if str(path).startswith(_RANDOM):
            return _random(str(path))
        return _open_path(path, split, header)
    if not isinstance(source, Iterable) or isinstance(source, bytes | Mapping):
        kind = type(source).__name__
        raise DataError(f"rows cannot come from type {kind}; give a file, or a list of texts, tuples or dicts")
    return Source("the rows given", _of_iterable(source), class_names=_class_names(source))


def _open_path(path: Path, split: str | None, header: HeaderRule) -> Source:
    if path.is_dir():
        from qdq.data.arrow import open_dataset

        rows, class_names = open_dataset(path, split)
        return Source(str(path), rows, class_names=class_names)
    supported = ", ".join(EXTENSIONS)
    if not path.exists():
        raise DataError(f"{path}: no such file; give a file ({supported}) or a saved datasets directory")
    extension = path.suffix.lower()
    if extension not in EXTENSIONS:
        shown = f"extension '{extension}' is not supported" if extension else "a file without extension"
        raise DataError(f"{path}: {shown}; supported are {supported}")
    if split is not None:
        raise DataError(f"{path}: a file has no splits; leave out the split {split!r}")
    if extension == ".parquet":
        from qdq.data.arrow import open_parquet

        rows, class_names = open_parquet(path)
        return Source(str(path), rows, class_names=class_names)
    reader = READERS.get(extension, read_json)
    return Source(str(path), lambda problems: reader(path, problems, header))


def _random(name: str) -> Source:
    count = name.removeprefix(_RANDOM)
    if not count.isascii() or not count.isdigit() or int(count) < 1:
        raise DataError(f"{name}: random:N wants the number of rows, such as random:64")
    _LOG.warning(
        "%s: random letters, fit for a smoke test or for timing; ranges and metrics from them mean nothing", name
    )
    return Source(name, lambda _: random_rows(int(count)))


def _of_iterable(rows: Iterable[Any]) -> Callable[[Problems], Iterator[Record]]:
    used = False

    def read(problems: Problems) -> Iterator[Record]:
        nonlocal used
        iterator = iter(rows)
        if iterator is rows:
            if used:
                raise DataError("the rows given are an iterator, which is used up; give a list to read it again")
            used = True
        for number, row in enumerate(iterator, start=1):
            values = _values(row)
            if values is None:
                problems.add(
                    f"row {number}", f"neither text nor a tuple of 2 or 3 nor a dict, but of type {type(row).__name__}"
                )
            else:
                yield Record(f"row {number}", values)

    return read


def _values(row: Any) -> dict[str, Any] | None:
    if isinstance(row, str):
        return {BARE: row}
    if isinstance(row, Mapping):
        return dict(row)
    if isinstance(row, tuple | list) and 2 <= len(row) <= 3:
        columns = ("text", "label") if len(row) == 2 and not isinstance(row[1], str) else _TUPLE_COLUMNS
        return dict(zip(columns, row, strict=False))
    return None


def _class_names(rows: Any) -> Mapping[str, Sequence[str]]:
    """Of a dataset held in memory by the package ``datasets``."""
    from qdq.data.arrow import class_names_of

    return class_names_of(getattr(rows, "features", None))
