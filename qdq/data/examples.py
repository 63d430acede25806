"""Read the examples of a task from any source of rows, as a stream."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from qdq.data.columns import LABELLED_TASKS, TEXT_TASKS, Columns, Layout, check_task, choose_columns, headerless_names
from qdq.data.example_types import ChoiceExample, Example, IdsExample, QuestionExample, TextExample, TokenExample
from qdq.data.formats import format_of
from qdq.data.label_reading import LabelReading, choices_reading, choose_reading
from qdq.data.label_survey import survey_labels
from qdq.data.labels import LabelError, Labels
from qdq.data.records import BARE, Problems, share
from qdq.data.rows import RowError, build_example, is_labelled
from qdq.data.source import Say, Source, SourceLike, draw, open_source
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


#: Columns that are read by their name alone.
_UNNAMED_COLUMNS = ("input_ids", "attention_mask", "token_type_ids", "is_impossible")

#: The layout of a row that is nothing but its text.
_BARE_LAYOUT = Layout(text=BARE)


@dataclass(frozen=True)
class Summary:
    """How many examples a source has, and how many rows were skipped because they have no text or no label."""

    examples: int
    skipped: int


class Examples:
    """The examples of a source, made by :func:`read_examples`. Each iteration reads the source again.

    Attributes:
        name: The name of the source, for messages.
        task: The task that the examples are for.
        skipped: The number of rows that the last complete iteration skipped.
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
        self._reading: LabelReading | None = None

    @property
    def takes_ids(self) -> bool:
        """Whether numbers in the data are taken as ids of a head whose labels have names."""
        return self._reading is not None and self._reading.takes_ids

    def __iter__(self) -> Iterator[Example]:
        """Yield the examples, or those that were drawn, in order.

        After the first problem no example comes any more: the source is read to its end to raise all problems together.

        Raises:
            DataError: Some rows cannot be used, or the source has no example.
        """
        if self._num_samples is None:
            return self._examples()
        return self._drawn(self._num_samples)

    def check(self) -> Summary:
        """Read the source once and keep nothing, so that its problems are known before the work begins.

        Raises:
            DataError: Some rows cannot be used, or the source has no example.
        """
        examples = sum(1 for _ in self._examples())
        return Summary(min(examples, self._num_samples or examples), self.skipped)

    def _drawn(self, num_samples: int) -> Iterator[Example]:
        for index, example in enumerate(draw(self._examples(), num_samples, self._seed)):
            yield replace(example, index=index)

    def _examples(self) -> Iterator[Example]:
        problems = Problems(self.name)
        reading = self._label_reading()
        chosen: Layout | None = None
        wanted: tuple[str, ...] | None = None
        if self._source.columns is not None:
            chosen = self._choose_columns(tuple(self._source.columns))
            wanted = (*chosen.names, *_UNNAMED_COLUMNS)
        index = skipped = blank = invisible = 0
        for record in self._source.records(problems, wanted):
            is_bare = list(record.values) == [BARE]
            if is_bare and self.task not in TEXT_TASKS:
                raise DataError(f"{self.name}: {record.location} is a bare text; {self.task} needs rows with columns")
            if not is_bare and chosen is None:
                chosen = self._choose_columns(tuple(record.values))
            layout = _BARE_LAYOUT if is_bare and not self._columns.names else chosen or Layout(text=self._columns.text)
            try:
                example = build_example(record, layout, self.task, index=index, reading=reading)
            except (RowError, LabelError) as error:
                problems.add(record.location, str(error))
                continue
            if self._is_wanted(example):
                index += 1
                invisible += _invisible_words(example)
                if not problems:
                    yield example
            else:
                skipped += 1
                blank += not is_bare
        # Only here: all problems of the source are raised together.
        problems.raise_if_any()
        if index == 0:
            raise DataError(self._no_example(skipped))
        self.skipped = skipped
        self._note_words(index + skipped, blank=blank, invisible=invisible)

    def _label_reading(self) -> LabelReading:
        """Return how labels are read, after a look at all of them where the source can be read again."""
        source, labels = self._source, self._labels
        if self._reading is not None:
            return self._reading
        self._reading = LabelReading(labels, source.class_names)
        if source.can_repeat and self.task == "multiple-choice":
            self._reading = choices_reading(source, self._columns)
        elif source.can_repeat and labels is not None and not labels.is_regression and self.task in LABELLED_TASKS:
            survey = survey_labels(source, self.task, self._columns, multi_label=labels.multi_label)
            self._reading = choose_reading(source, survey, labels)
        return self._reading

    def _note_words(self, rows: int, *, blank: int, invisible: int) -> None:
        if blank and not self._need_labels:
            self._source.note(f"{share(blank, rows)} have no text and are skipped", logging.WARNING)
        if invisible:
            self._source.note(
                f"{invisible} words are blank or invisible characters; they count as words, and have no token",
                logging.WARNING,
            )

    def _choose_columns(self, available: tuple[str, ...]) -> Layout:
        layout = choose_columns(self._columns, self.task, available, name=self.name, is_table=self._source.is_table)
        if self._need_labels and self._label_column(layout) is None:
            names = ", ".join(map(repr, available))
            raise DataError(
                f"{self.name}: no column has a usual name for labels, and {self.task} needs them; it has {names}; "
                "name it with --label-column"
            )
        return layout

    def _label_column(self, layout: Layout) -> str | None:
        if self.task == "question-answering":
            return layout.answers
        return layout.tags if self.task == "token-classification" and not layout.ids else layout.label

    def _is_wanted(self, example: Example) -> bool:
        if self._need_labels:
            return is_labelled(example)
        # A blank row teaches nothing by itself; with a label it counts, where labels are needed.
        return not isinstance(example, TextExample) or bool(example.text.strip() or (example.text_pair or "").strip())

    def _no_example(self, skipped: int) -> str:
        if skipped and self._need_labels:
            return (
                f"{self.name}: none of its {skipped} rows has a label, and {self.task} needs labels: name their "
                "column (--label-column)"
            )
        return f"{self.name}: holds no text; give a source with at least one row that is not blank"


def _invisible_words(example: Example) -> int:
    """Return how many words of an example are nothing but blanks and invisible characters."""
    if not isinstance(example, TokenExample):
        return 0
    # Few words have characters that are not printable, so that the slow test is rare.
    odd = (word for word in example.tokens if not word.isprintable() or not word.strip())
    return sum(all(character.isspace() or not character.isprintable() for character in word) for word in odd)


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
    say: Say | None = None,
) -> Examples:
    """Read the examples of a task from anything that holds rows (see :func:`qdq.data.source.open_source`).

    The call itself raises the problems of the file name, the columns and the first row. The other rows are read while
    the result is iterated, so memory does not grow with the source; ``num_samples`` drawn examples are held in memory.

    Args:
        source: A file, a directory that ``datasets`` saved, ``random:N``, or a Python iterable.
        task: One of :data:`qdq.data.columns.TASKS`.
        columns: The names of columns; for those that are not given the usual names are tried.
        labels: The labels of the head; None keeps numbers as they are.
        num_samples: Draw so many examples, uniformly at random; they keep their order.
        seed: The seed of the draw.
        need_labels: Skip and count rows without a label. Without it, rows without text are skipped.
        split: The split of a saved data set that has several.
        say: Takes what was decided about the source and its labels; None logs it.

    Returns:
        The examples, which can be iterated again and again.

    Raises:
        ConfigError: There is no such task, or ``num_samples`` is below 1.
        DataError: The source cannot be read, or not for this task.
        StorageError: A file exists and cannot be read.
    """
    check_task(task)
    draw((), num_samples, seed)  # raises now if the number is below 1
    columns = columns or Columns()
    is_text = isinstance(source, str | os.PathLike) and format_of(Path(source))[0] == ".txt"
    if is_text and columns.names and task != "token-classification":
        raise DataError(
            f"{source}: a .txt file has no columns; name none (--text-column), or give .jsonl, .csv or .tsv"
        )
    opened = open_source(
        source,
        split=split,
        header=lambda first: headerless_names(columns, task, first),
        words=task == "token-classification",
        say=say,
    )
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
        # Reads up to the first example, which raises problems of the file, its columns and its first row.
        next(examples._examples(), None)
    return examples
