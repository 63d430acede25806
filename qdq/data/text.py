"""Text in: sentences or sentence pairs, read row by row in constant memory, whatever they were written for.

Files of text, tables, JSON, CoNLL, SQuAD, saved datasets (see :mod:`qdq.data.source`). Rows without text are skipped.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from qdq.data.columns import Columns
from qdq.data.examples import TextExample, read_examples
from qdq.data.sampling import draw
from qdq.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from qdq.data.source import SourceLike

__all__ = ["TextSample", "draw", "read_samples", "sample_text"]


@dataclass(frozen=True)
class TextSample:
    """A sentence, or a pair of sentences that the model reads together."""

    text: str
    text_pair: str | None = None


def read_samples(
    source: SourceLike, *, text_column: str | None = None, text_pair_column: str | None = None, split: str | None = None
) -> Iterator[TextSample]:
    """The texts of a source, in its order.

    What cannot be read as asked (its name, its header, its beginning) is refused by the call itself; problems further
    on are raised while iterating, all of them together.

    Args:
        source: A file, a directory that ``datasets`` saved, ``random:N``, or a Python iterable.
        text_column: The column or key of the text; the usual public names are tried when it is not given.
        text_pair_column: The column or key of the second sentence; without it, a given ``text_column`` stands alone.
        split: Of a saved dataset that has several.

    Raises:
        DataError: The source is missing, empty, binary, of an unknown kind, lacks the column or has damaged rows.
        StorageError: A file exists and cannot be read.
    """
    columns = Columns(text=text_column, text_pair=text_pair_column)
    samples = _samples(iter(read_examples(source, "feature-extraction", columns=columns, split=split)))
    return chain([next(samples)], samples)


def _samples(examples: Iterator[object]) -> Iterator[TextSample]:
    for example in examples:
        if isinstance(example, TextExample):
            yield TextSample(example.text, example.text_pair)
        else:
            raise ConfigError("rows of token ids have no text; make batches of them with qdq.data.batches.make_batches")


def sample_text(name: Literal["calibration", "heldout"]) -> Path:
    """The text that comes with the package: 256 sentences to calibrate on, or 96 others to check the result with."""
    names = ("calibration", "heldout")
    if name not in names:
        raise ConfigError(f"there is no sample text {name!r}; there are {', '.join(names)}")
    return Path(str(resources.files("qdq.data") / "samples" / f"{name}.txt"))
