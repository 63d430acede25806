"""Sample text for models of multiple choice, which read each choice together with its question."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING

from qdq.data.columns import Columns
from qdq.data.example_types import ChoiceExample
from qdq.data.examples import read_examples
from qdq.data.text import TextSample, read_samples
from qdq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from qdq.data.source import SourceLike

__all__ = ["each_alone", "read_choices"]


def read_choices(
    source: SourceLike, *, text_column: str | None = None, text_pair_column: str | None = None
) -> Iterator[TextSample]:
    """Return a pair of the text with each of its choices. A source without choices gives its texts and pairs.

    Args:
        source: See :func:`qdq.read_samples`.
        text_column: The column of the text.
        text_pair_column: The column of a second text; with it, choices are not looked for.

    Raises:
        DataError: As for :func:`qdq.read_samples`.
    """
    if isinstance(source, Iterator):
        source = list(source)  # it is read again where it has no choices
    first = None
    if text_pair_column is None:
        # Plain text serves as well: every text is then the only choice of a question.
        with suppress(DataError):
            examples = iter(read_examples(source, "multiple-choice", columns=Columns(text=text_column)))
            first = next(examples)
    if first is None:
        yield from read_samples(source, text_column=text_column, text_pair_column=text_pair_column)
        return
    for example in chain([first], examples):
        if isinstance(example, ChoiceExample):
            for choice in example.choices:
                yield TextSample(example.text, choice)


def each_alone(batches: Iterator[dict[str, Tensor]]) -> Iterator[Mapping[str, Tensor]]:
    """Yield batches ``(batch, seq)`` as batches ``(batch, 1, seq)`` of questions with one choice each."""
    for batch in batches:
        yield {name: tensor.unsqueeze(1) for name, tensor in batch.items()}
