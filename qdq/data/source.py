"""Open a source of rows: a file of any format, a saved data set, a Python iterable or random letters."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from qdq.data.json_file import read_json
from qdq.data.records import BARE, HeaderRule, Problems, Record, first_row_is_header
from qdq.data.text_files import READERS
from qdq.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

__all__ = ["EXTENSIONS", "Record", "Source", "SourceLike", "draw", "open_source"]


T = TypeVar("T")

SourceLike: TypeAlias = str | os.PathLike[str] | Iterable[Any]

_LOG = logging.getLogger(__name__)

_RANDOM = "random:"

#: The file name extensions that are read; ``.parquet`` needs the package ``datasets``.
EXTENSIONS = (*READERS, ".json", ".parquet")

_TUPLE_COLUMNS = ("text", "text_pair", "label")


class Source:
    """The rows of one source, in order. A file can be read any number of times; an iterator can be read once.

    Args:
        name: The name of the source, for messages.
        read: Begins a new pass over the rows and reports problems to its argument.
        class_names: By column, the class names of its numbers, where the file has them (``ClassLabel``).
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
        """Yield the rows; the caller raises the problems."""
        return self._read(problems)

    def __iter__(self) -> Iterator[Record]:
        """Yield the rows up to the first problem; read on to the end and raise all problems together.

        Raises:
            DataError: Rows cannot be read.
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
    """Open anything that holds rows.

    1. A file: ``.txt``, ``.jsonl``, ``.csv``, ``.tsv``, ``.conll`` (``.iob``, ``.bio``), ``.json`` (also SQuAD), and,
       with the package ``datasets``, ``.parquet``.
    2. A directory that ``datasets`` saved with ``save_to_disk``; ``split`` chooses one of several splits.
    3. ``random:N``: N rows of random letters, for smoke tests and timing. A wrong path is never read as this.
    4. A Python iterable of texts, of dicts, or of tuples: ``(text, second text)``, ``(text, label)`` with a label that
       is not a string, or ``(text, second text, label)``.

    Args:
        source: One of the four cases.
        split: The split of case 2.
        header: The header rule of ``.csv`` and ``.tsv`` files.

    Returns:
        The source. Its rows are read when it is iterated.

    Raises:
        DataError: ``source`` is none of the four, or the file is missing or has an unknown extension.
        MissingPackageError: Reading needs the package ``datasets``, which is not installed.
    """
    if isinstance(source, str) and source.startswith(_RANDOM):
        return _open_random(source)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if str(path).startswith(_RANDOM):
            return _open_random(str(path))
        return _open_path(path, split, header)
    if not isinstance(source, Iterable) or isinstance(source, bytes | Mapping):
        kind = type(source).__name__
        raise DataError(f"rows cannot come from type {kind}; give a file, or a list of texts, tuples or dicts")
    return Source("the rows given", _read_iterable(source), class_names=_class_names(source))


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


def _open_random(name: str) -> Source:
    count = name.removeprefix(_RANDOM)
    if not count.isascii() or not count.isdigit() or int(count) < 1:
        raise DataError(f"{name}: random:N needs the number of rows, such as random:64")
    _LOG.warning("%s: random letters, for smoke tests and timing only; ranges and metrics from them mean nothing", name)
    return Source(name, lambda _: random_rows(int(count)))


def _read_iterable(rows: Iterable[Any]) -> Callable[[Problems], Iterator[Record]]:
    used = False

    def read(problems: Problems) -> Iterator[Record]:
        nonlocal used
        iterator = iter(rows)
        # An iterator returns itself, and can be read only once.
        if iterator is rows:
            if used:
                raise DataError("the rows given are an iterator, which is used up; give a list to read it again")
            used = True
        for number, row in enumerate(iterator, start=1):
            values = _columns_of(row)
            if values is None:
                problems.add(
                    f"row {number}", f"neither text nor a tuple of 2 or 3 nor a dict, but of type {type(row).__name__}"
                )
            else:
                yield Record(f"row {number}", values)

    return read


def _columns_of(row: Any) -> dict[str, Any] | None:
    if isinstance(row, str):
        return {BARE: row}
    if isinstance(row, Mapping):
        return dict(row)
    if isinstance(row, tuple | list) and 2 <= len(row) <= 3:
        columns = ("text", "label") if len(row) == 2 and not isinstance(row[1], str) else _TUPLE_COLUMNS
        return dict(zip(columns, row, strict=False))
    return None


def _class_names(rows: Any) -> Mapping[str, Sequence[str]]:
    """Return the class names of a data set of the package ``datasets`` that is in memory."""
    from qdq.data.arrow import class_names_of

    return class_names_of(getattr(rows, "features", None))


def random_rows(count: int) -> Iterator[Record]:
    """Yield rows with a ``text`` of 5 to 60 words of 1 to 9 random letters; row N is always the same text."""
    generator = random.Random(0)

    def between(low: int, high: int) -> int:
        # random() is the only method whose sequence Python promises to keep in later versions.
        return low + int(generator.random() * (high - low + 1))

    def word() -> str:
        return "".join(ascii_lowercase[between(0, 25)] for _ in range(between(1, 9)))

    for number in range(1, count + 1):
        yield Record(f"row {number}", {"text": " ".join(word() for _ in range(between(5, 60)))})


def draw(samples: Iterable[T], num_samples: int | None, seed: int) -> list[T]:
    """Draw at most ``num_samples`` samples uniformly at random and return them in their original order.

    This is reservoir sampling (Vitter 1985, algorithm R): it takes one pass and memory for ``num_samples`` samples, and
    the same seed draws the same samples on every machine.

    Args:
        samples: The samples to draw from.
        num_samples: How many to draw; None returns all of them.
        seed: The seed of the draw.

    Raises:
        ConfigError: ``num_samples`` is below 1.
    """
    if num_samples is None:
        return list(samples)
    if num_samples < 1:
        raise ConfigError(f"the number of samples must be at least 1, not {num_samples}")
    generator = random.Random(seed)
    # Sorted by index at the end: replacing samples destroys their order.
    reservoir: list[tuple[int, T]] = []
    for index, sample in enumerate(samples):
        if index < num_samples:
            reservoir.append((index, sample))
            continue
        # random() is the only method whose sequence Python promises to keep in later versions.
        slot = int(generator.random() * (index + 1))
        if slot < num_samples:
            reservoir[slot] = (index, sample)
    return [sample for _, sample in sorted(reservoir, key=lambda entry: entry[0])]
