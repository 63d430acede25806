"""Any source of rows -> the examples of a task, streaming."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qdq.data.columns import TEXT_TASKS, Columns, Layout, check_task, settle
from qdq.data.formats import BARE
from qdq.data.header import headerless
from qdq.data.kinds import ChoiceExample, Example, IdsExample, QuestionExample, TextExample, TokenExample
from qdq.data.labels import LabelError, Labels
from qdq.data.problems import Problems
from qdq.data.rows import RowError, build_example, is_labelled
from qdq.data.sampling import draw
from qdq.data.source import Source, SourceLike, open_source
from qdq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "ChoiceExample",
    "Columns",
    "Example",
    "Examples",
    "IdsExample",
    "QuestionExample",
    "Summary",
    "TextExample",
    "TokenExample",
    "read_examples",
]


#: Where a row is nothing but its text.
_BARE = Layout(text=BARE)


@dataclass(frozen=True)
class Summary:
    """What a source holds: its examples, and the rows that were skipped because they have no text or no label."""

    examples: int
    skipped: int


class Examples:
    """The examples of a source; a pass reads it anew. Made by :func:`read_examples`.

    Attributes:
        name: The source, for messages.
        task: What they are for.
        skipped: Rows that the last whole pass left out.
    """

    def __init__(
        self,
        source: Source,
        task: str,
        *,
        columns: Columns,
        labels: Labels | None,
        num_samples: int | None,
        seed: int,
        need_labels: bool,
    ) -> None:
        self.name = source.name
        self.task = task
        self.skipped = 0
        self._source = source
        self._columns = columns
        self._labels = labels
        self._num_samples = num_samples
        self._seed = seed
        self._need_labels = need_labels

    def __iter__(self) -> Iterator[Example]:
        """The examples in their order, or the ones drawn of them.

        From the first problem on only problems are gathered; the pass ends with the error that tells them all.

        Raises:
            DataError: Rows that cannot be used, or none at all.
        """
        if self._num_samples is None:
            return self._examples()
        return self._drawn(self._num_samples)

    def check(self) -> Summary:
        """Read everything once and keep nothing: what is wrong anywhere is told before work begins.

        Raises:
            DataError: As in a pass.
        """
        examples = sum(1 for _ in self._examples())
        return Summary(min(examples, self._num_samples or examples), self.skipped)

    def _drawn(self, num_samples: int) -> Iterator[Example]:
        for index, example in enumerate(draw(self._examples(), num_samples, self._seed)):
            yield replace(example, index=index)

    def _examples(self) -> Iterator[Example]:
        problems = Problems(self.name)
        settled: Layout | None = None
        index = skipped = 0
        for record in self._source.records(problems):
            is_bare = list(record.values) == [BARE]
            if is_bare and self.task not in TEXT_TASKS:
                raise DataError(f"{self.name}: {record.place} is a bare text; {self.task} needs rows with columns")
            if not is_bare and settled is None:
                settled = self._settle(tuple(record.values))
            layout = _BARE if is_bare and not self._columns.names else settled or Layout(text=self._columns.text)
            try:
                example = build_example(
                    record,
                    layout,
                    self.task,
                    index=index,
                    labels=self._labels,
                    class_names=self._source.class_names,
                )
            except (RowError, LabelError) as error:
                problems.add(record.place, str(error))
                continue
            if self._is_wanted(example):
                index += 1
                if not problems:
                    yield example
            else:
                skipped += 1
        problems.raise_if_any()
        if index == 0:
            raise DataError(self._nothing(skipped))
        self.skipped = skipped

    def _settle(self, available: tuple[str, ...]) -> Layout:
        layout = settle(self._columns, self.task, available, name=self.name)
        if self._need_labels and self._label_column(layout) is None:
            names = ", ".join(map(repr, available))
            raise DataError(
                f"{self.name}: no column has a usual name for labels, and {self.task} needs them; it has {names}"
            )
        return layout

    def _label_column(self, layout: Layout) -> str | None:
        if self.task == "question-answering":
            return layout.answers
        return layout.tags if self.task == "token-classification" and not layout.ids else layout.label

    def _is_wanted(self, example: Example) -> bool:
        if self._need_labels:
            return is_labelled(example)
        # a row without words says nothing; with a label it still counts, where labels count
        return not isinstance(example, TextExample) or bool(example.text.strip() or (example.text_pair or "").strip())

    def _nothing(self, skipped: int) -> str:
        if skipped and self._need_labels:
            return f"{self.name}: none of its {skipped} rows has a label, and {self.task} needs them"
        return f"{self.name}: holds no text; give a source with at least one row that is not blank"


def read_examples(
    source: SourceLike,
    task: str,
    *,
    columns: Columns | None = None,
    labels: Labels | None = None,
    num_samples: int | None = None,
    seed: int = 0,
    need_labels: bool = False,
    split: str | None = None,
) -> Examples:
    """The examples of a task, out of anything that holds rows (see :func:`qdq.data.source.open_source`).

    What is wrong with a file's name, its columns and its first row is refused by the call itself. Rows stream: memory
    does not grow with the source, and is that of ``num_samples`` examples where these are drawn.

    Args:
        source: A file, a directory that ``datasets`` saved, ``random:N``, or a Python iterable.
        task: One of :data:`qdq.data.columns.TASKS`.
        columns: Names of columns; the usual public ones are tried where none is given.
        labels: Of the head; None takes numbers as they are.
        num_samples: Draw so many, uniformly at random; they keep their order.
        seed: Of the draw.
        need_labels: Skip and count rows without label; without it, skip rows without text.
        split: Of a saved dataset that has several.

    Raises:
        ConfigError: ``task`` is none, or ``num_samples`` is below 1.
        DataError: The source cannot be read as asked.
        StorageError: A file exists and cannot be read.
    """
    check_task(task)
    draw((), num_samples, seed)  # refuses a number below 1
    columns = columns or Columns()
    if isinstance(source, str | os.PathLike) and Path(source).suffix.lower() == ".txt" and columns.names:
        raise DataError(
            f"{source}: a .txt file has no columns; name none (--text-column), or give .jsonl, .csv or .tsv"
        )
    opened = open_source(source, split=split, header=lambda first: headerless(columns, task, first))
    examples = Examples(
        opened,
        task,
        columns=columns,
        labels=labels,
        num_samples=num_samples,
        seed=seed,
        need_labels=need_labels,
    )
    if isinstance(source, str | os.PathLike):
        next(examples._examples(), None)
    return examples
