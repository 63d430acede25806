"""Text in: files of sentences or sentence pairs, read line by line in constant memory.

``.txt`` (a sentence a line), ``.jsonl``, ``.csv`` and ``.tsv``, in UTF-8 with or without a byte order mark. Blank lines
and rows whose text is blank are skipped.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qdq.data.formats import READERS, Columns, read_lines
from qdq.errors import ConfigError, DataError, describe_faults

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["TextSample", "draw", "read_samples", "sample_text"]

_MAX_FAULTS = 5


@dataclass(frozen=True)
class TextSample:
    """A sentence, or a pair of sentences that the model reads together."""

    text: str
    text_pair: str | None = None


def read_samples(
    path: Path, *, text_column: str | None = None, text_pair_column: str | None = None
) -> Iterator[TextSample]:
    """The samples of a text file, in its order.

    A file that cannot be read as asked (its name, its header, its beginning) is refused by the call itself; faults
    further on are raised while iterating, the first five of them together.

    Args:
        path: A ``.txt``, ``.jsonl``, ``.csv`` or ``.tsv`` file.
        text_column: The column or key of the text; the usual public names are tried when it is not given.
        text_pair_column: The column or key of the second sentence; without it, a given ``text_column`` stands alone.

    Raises:
        DataError: The file is missing, empty, binary, of an unknown extension, lacks the column or has damaged lines.
        StorageError: The file exists and cannot be read.
    """
    path = Path(path)
    columns = Columns(path, text_column, text_pair_column)
    _check(path, columns)
    samples = _read(path, columns)
    first = next(samples, None)
    if first is None:
        raise DataError(f"{path}: holds no text; give a file with at least one sentence")
    return chain([first], samples)


def draw(samples: Iterable[TextSample], num_samples: int | None, seed: int) -> list[TextSample]:
    """At most ``num_samples`` of the samples, uniformly at random, in their own order.

    Reservoir sampling (Vitter 1985, algorithm R): one pass, memory for ``num_samples`` only, the same choice for the
    same seed everywhere. ``None``, or no more samples than asked for, gives them all.

    Raises:
        ConfigError: ``num_samples`` is below 1.
    """
    if num_samples is None:
        return list(samples)
    if num_samples < 1:
        raise ConfigError(f"the number of samples must be at least 1, not {num_samples}")
    generator = random.Random(seed)
    reservoir: list[tuple[int, TextSample]] = []
    for index, sample in enumerate(samples):
        if index < num_samples:
            reservoir.append((index, sample))
            continue
        # random() is the one method whose sequence Python promises to keep across versions
        place = int(generator.random() * (index + 1))
        if place < num_samples:
            reservoir[place] = (index, sample)
    return [sample for _, sample in sorted(reservoir, key=lambda entry: entry[0])]


def sample_text(name: Literal["calibration", "heldout"]) -> Path:
    """The text that comes with the package: 256 sentences to calibrate on, or 96 others to check the result with."""
    names = ("calibration", "heldout")
    if name not in names:
        raise ConfigError(f"there is no sample text {name!r}; there are {', '.join(names)}")
    return Path(str(resources.files("qdq.data") / "samples" / f"{name}.txt"))


def _check(path: Path, columns: Columns) -> None:
    """Refuse what needs no reading to be refused."""
    extension, supported = path.suffix.lower(), ", ".join(READERS)
    if path.is_dir():
        raise DataError(f"{path}: is a directory; give a file ({supported})")
    if not path.exists():
        raise DataError(f"{path}: no such file")
    if extension not in READERS:
        raise DataError(f"{path}: extension '{extension}' is not supported; supported are {supported}")
    if extension == ".txt" and columns.are_named:
        raise DataError(f"{path}: a .txt file has no columns; leave out --text-column, or give .jsonl, .csv or .tsv")


def _read(path: Path, columns: Columns) -> Iterator[TextSample]:
    """The samples; from the first damaged line on only faults are gathered, to be raised together."""
    faults: list[str] = []
    for line, row in READERS[path.suffix.lower()](read_lines(path), columns):
        if isinstance(row, str):
            faults.append(f"line {line}: {row}")
            if len(faults) == _MAX_FAULTS:
                raise DataError(describe_faults(f"{path} (the first of them)", faults))
        elif not faults and row[0].strip():
            yield TextSample(*row)
    if faults:
        raise DataError(describe_faults(str(path), faults))
