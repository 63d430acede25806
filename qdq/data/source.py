"""Open a source of rows: a file of any format, a saved data set, a Python iterable or random letters."""

from __future__ import annotations

import logging
import os
import random
from collections.abc import Iterable, Iterator
from functools import partial
from glob import glob
from pathlib import Path
from string import ascii_lowercase
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

from qdq.data.conll import read_conll
from qdq.data.formats import ARROW, EXTENSIONS, READERS, TABLES, format_inside, format_of
from qdq.data.in_memory import columns_of, rows_in_memory
from qdq.data.opening import is_compressed, is_page
from qdq.data.records import HeaderRule, Hints, Problems, Record, first_row_is_header
from qdq.errors import ConfigError, DataError, StorageError
from qdq.storage import refuse_pointer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["EXTENSIONS", "Record", "Say", "Source", "SourceLike", "draw", "log", "open_source"]


T = TypeVar("T")

SourceLike: TypeAlias = str | os.PathLike[str] | Iterable[Any]

_LOG = logging.getLogger(__name__)

_RANDOM = "random:"

#: Takes the level of a note and its sentence.
Say: TypeAlias = "Callable[[int, str], None]"


def log(level: int, text: str) -> None:
    """Log a note about a source."""
    _LOG.log(level, "%s", text)


class Source:
    """The rows of one source, in order. A file can be read any number of times; an iterator can be read once.

    What the reader decided about the file is said once, at the end of the first whole pass.

    Args:
        name: The name of the source, for messages.
        read: Begins a new pass over the rows and reports problems to its first argument. The second one names the
            columns to read; a reader of rows may ignore it.
        class_names: By column, the class names of its numbers, where the file has them (``ClassLabel``).
        columns: The names of the columns where they are known before the rows.
        is_table: Whether the first line of the file may be a header.
        can_repeat: Whether the source can be read more than once.
        say: Takes notes; None logs them.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[Problems, Sequence[str] | None], Iterator[Record]],
        *,
        class_names: Mapping[str, Sequence[str]] | None = None,
        columns: Sequence[str] | None = None,
        is_table: bool = False,
        can_repeat: bool = True,
        say: Say | None = None,
    ) -> None:
        self.name = name
        self.class_names = dict(class_names or {})
        self.columns = columns
        self.is_table = is_table
        self.can_repeat = can_repeat
        self._read = read
        self._say = say or log
        self._said: set[str] = set()

    def records(self, problems: Problems, columns: Sequence[str] | None = None) -> Iterator[Record]:
        """Yield the rows; the caller raises the problems.

        Args:
            problems: Receives the problems of rows.
            columns: The columns that are needed; None for all. Rows may have others.
        """
        yield from self._read(problems, columns)
        for text, level in problems.notes.items():
            self.note(text, level)

    def note(self, text: str, level: int = logging.INFO) -> None:
        """Say something about the source, if it was not said before."""
        if text not in self._said:
            self._said.add(text)
            self._say(level, f"{self.name}: {text}")

    def __iter__(self) -> Iterator[Record]:
        """Yield the rows up to the first problem; read on to the end and raise all problems together.

        Raises:
            DataError: Rows cannot be read.
        """
        problems = Problems(self.name)
        for record in self.records(problems):
            if not problems:
                yield record
        problems.raise_if_any()


def open_source(
    source: SourceLike,
    *,
    split: str | None = None,
    header: HeaderRule = first_row_is_header,
    words: bool = False,
    say: Say | None = None,
) -> Source:
    """Open anything that holds rows.

    1. A file: ``.txt``, ``.jsonl`` (``.ndjson``, ``.jsonlines``), ``.csv``, ``.tsv``, ``.conll`` (``.iob``, ``.bio``),
       ``.json`` (also SQuAD), each also compressed (``.gz``, ``.bz2``, ``.xz``), and, with the package ``pyarrow``,
       ``.parquet``, ``.arrow`` and ``.feather``.
    2. A directory that ``datasets`` saved with ``save_to_disk``; ``split`` chooses one of several splits.
    3. ``random:N``: N rows of random letters, for smoke tests and timing. A wrong path is never read as this.
    4. A Python iterable of texts, of dicts, or of tuples: ``(text, second text)``, ``(text, label)`` with a label that
       is not a string, or ``(text, second text, label)``. Also a table of pandas, polars or pyarrow, and a
       ``DatasetDict``, of which ``split`` chooses one.

    Args:
        source: One of the four cases.
        split: The split of case 2, or of a ``.json`` file that holds several.
        header: The header rule of ``.csv`` and ``.tsv`` files.
        words: Whether words with tags are wanted; a ``.txt`` file of such columns is then read as ``.conll``.
        say: Takes the notes about the source; None logs them.

    Returns:
        The source. Its rows are read when it is iterated.

    Raises:
        DataError: ``source`` is none of the four, or the file is missing or has an unknown extension.
        MissingPackageError: Reading needs a package that is not installed.
    """
    if isinstance(source, str) and source.startswith(_RANDOM):
        return _open_random(source)
    if isinstance(source, str | os.PathLike):
        path = Path(source)
        if str(path).startswith(_RANDOM):
            return _open_random(str(path))
        return _open_path(path, Hints(header, split, words), say)
    rows = rows_in_memory(source, split)
    # An iterator returns itself, and can be read only once.
    can_repeat = not isinstance(rows, Iterator)
    names = _class_names(rows)
    return Source("the rows given", _read_iterable(rows), class_names=names, can_repeat=can_repeat, say=say)


def _open_path(path: Path, hints: Hints, say: Say | None) -> Source:
    if path.is_dir():
        from qdq.data.arrow import open_dataset

        rows, class_names, columns = open_dataset(path, hints.split)
        return Source(str(path), rows, class_names=class_names, columns=columns, say=say)
    supported = ", ".join(EXTENSIONS)
    if not path.exists():
        raise DataError(
            f"{path}: no such file{_matches(path)}; give a file ({supported}) or a saved datasets directory"
        )
    refuse_pointer(path, DataError)
    extension, compression = format_of(path)
    if extension not in EXTENSIONS:
        shown = f"extension '{extension}' is not supported" if extension else "a file without extension"
        if compression:
            shown = f"its name does not say what the compressed file holds (as a.jsonl{compression} does)"
        if compression == ".zip":
            raise DataError(f"{path}: is an archive; unpack it first, and give one of its files")
        raise DataError(f"{path}: {shown}; supported are {supported}, also compressed (.gz, .bz2, .xz)")
    if hints.split is not None and extension != ".json":
        raise DataError(f"{path}: a file has no splits; leave out the split {hints.split!r}")
    if extension in ARROW:
        if compression:
            raise DataError(f"{path}: unpack it first; {extension} files are compressed inside, and need no other")
        from qdq.data.arrow import open_columns

        rows, class_names, columns = open_columns(path)
        return Source(str(path), rows, class_names=class_names, columns=columns, say=say)
    try:
        if compression and not is_compressed(path):
            raise DataError(f"{path}: is not compressed, or damaged: it does not begin as a {compression} file does")
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    if is_page(path):
        raise DataError(f"{path}: is an HTML page, not the data itself; download the raw file")
    reader = READERS[extension]
    if extension == ".txt" and (actual := format_inside(path, words=hints.words)):
        # Many corpora of words with tags are called train.txt.
        reader = _read_columns if hints.words and actual == ".conll" else partial(_read_with_warning, actual=actual)
    return Source(str(path), lambda problems, _: reader(path, problems, hints), is_table=extension in TABLES, say=say)


def _matches(path: Path) -> str:
    """Return the files that a path fits, if it is a pattern."""
    if not any(mark in str(path) for mark in "*?["):
        return ""
    found = sorted(glob(str(path)))  # noqa: PTH207 - Path.glob wants a relative pattern
    names = ", ".join(found[:3])
    shown = f"; it fits {len(found)}: {names}{', ...' * (len(found) > 3)}; put them into one file" if found else ""
    return f", and patterns are not followed{shown}"


def _read_columns(path: Path, problems: Problems, hints: Hints) -> Iterator[Record]:
    problems.note("holds a token and its tags on each line, and is read as a .conll file")
    return read_conll(path, problems, hints)


def _read_with_warning(path: Path, problems: Problems, hints: Hints, *, actual: str) -> Iterator[Record]:
    looks = {".conll": "tokens with tags", ".tsv": "rows of a table", ".jsonl": "JSON"}[actual]
    problems.note(
        f"its lines look like {looks}, and each is read as a sentence; rename it to {actual} to read it as such a file",
        logging.WARNING,
    )
    return READERS[".txt"](path, problems, hints)


def _open_random(name: str) -> Source:
    count = name.removeprefix(_RANDOM)
    if not count.isascii() or not count.isdigit() or int(count) < 1:
        raise DataError(f"{name}: random:N needs the number of rows, such as random:64")
    _LOG.warning("%s: random letters, for smoke tests and timing only; ranges and metrics from them mean nothing", name)
    return Source(name, lambda *_: random_rows(int(count)))


def _read_iterable(rows: Iterable[Any]) -> Callable[..., Iterator[Record]]:
    used = False

    def read(problems: Problems, _: Sequence[str] | None = None) -> Iterator[Record]:
        nonlocal used
        iterator = iter(rows)
        if iterator is rows:
            if used:
                raise DataError("the rows given are an iterator, which is used up; give a list to read it again")
            used = True
        for number, row in enumerate(iterator, start=1):
            values = columns_of(row)
            if values is None:
                problems.add(
                    f"row {number}", f"neither text nor a tuple of 2 or 3 nor a dict, but of type {type(row).__name__}"
                )
            else:
                yield Record(f"row {number}", values)

    return read


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
