"""Look at a whole column of labels before deciding what its values mean."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qdq.data.columns import LABELLED_TASKS, Columns, choose_columns
from qdq.data.label_values import is_code, is_exact, is_mark, is_missing, list_of, number_name, number_of
from qdq.data.records import BARE, Problems
from qdq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from qdq.data.source import Source

__all__ = ["MOST_LABELS", "LabelSurvey", "survey_labels", "too_many"]

#: Labels of a head; a column with more different values holds something else.
MOST_LABELS = 10_000

_SEPARATORS = ("|", ";", ",")


@dataclass
class LabelSurvey:
    """The values of a column of labels with their numbers of rows (of tokens, for tags).

    Args:
        column: The name of the column.
        rows: The number of rows.
        missing: How many rows have no value.
        counts: How often each value comes: texts without blanks around them, and numbers as float.
        booleans: How many values are true or false.
        nested: How many values are lists or objects where one label is wanted.
        widths: The lengths of lists that are vectors of 0 and 1; -1 for values that are no such lists.
        repeats: Whether some vector has a number twice, which no list of classes has.
        is_full: Whether counting ended because there are more than :data:`MOST_LABELS` values.
        columns: The columns of the source.
    """

    column: str = ""
    rows: int = 0
    missing: int = 0
    counts: Counter[str | float] = field(default_factory=Counter)
    booleans: int = 0
    nested: int = 0
    widths: set[int] = field(default_factory=set)
    repeats: bool = False
    is_full: bool = False
    columns: tuple[str, ...] = ()

    def add(self, value: Any, *, is_list: bool) -> None:
        """Count the value of a row.

        Args:
            value: The value.
            is_list: Whether a row may have several labels, or has one for each token.
        """
        self.rows += 1
        if not is_list and type(value) is str and value in self.counts:  # nearly all rows of a table
            self.counts[value] += 1
            return
        if is_missing(value) or (is_list and not isinstance(value, list | tuple) and is_mark(value)):
            self.missing += 1
            return
        values = list_of(value) if is_list else [value]
        if is_list:
            is_vector = isinstance(value, list | tuple) or len(values) > 1
            is_vector = is_vector and all(type(one) in (int, float) and one in (0, 1) for one in values)
            self.widths.add(len(values) if is_vector else -1)
            self.repeats |= is_vector and len(set(values)) < len(values)
        for one in values:
            if type(one) is str and one in self.counts:
                self.counts[one] += 1
                continue
            if is_list and is_missing(one):
                continue
            self.booleans += isinstance(one, bool)
            self.nested += isinstance(one, list | tuple | dict)
            number = number_of(one) if not isinstance(one, str) and is_exact(one) else None
            self.counts[str(one).strip() if number is None else number] += 1
        self.is_full = len(self.counts) > MOST_LABELS

    def parts(self) -> tuple[dict[str, int], dict[float, int]]:
        """Return the values that are names and those that are numbers, with their counts.

        Texts that spell numbers are numbers, unless some of them are codes with leading zeros.
        """
        texts = {value: count for value, count in self.counts.items() if isinstance(value, str)}
        numbers = Counter({value: count for value, count in self.counts.items() if not isinstance(value, str)})
        if any(map(is_code, texts)):
            return texts, numbers
        names = {}
        for text, count in texts.items():
            number = number_of(text)
            if number is None:
                names[text] = count
            else:
                numbers[number] += count
        return names, numbers

    @property
    def labelled(self) -> int:
        """How many values there are."""
        return sum(self.counts.values())

    @property
    def marks(self) -> int:
        """How many values are -1 or ``-``."""
        return sum(count for value, count in self.counts.items() if is_mark(value))

    @property
    def vector_width(self) -> int | None:
        """The length of the vectors of 0 and 1; None where the rows have lists of labels."""
        if len(self.widths) != 1 or not self.repeats:
            return None
        (width,) = self.widths
        return width if width > 0 else None

    @property
    def separator(self) -> str | None:
        """What stands between several labels in one text: splitting there leaves fewer different labels."""
        texts = {value for value in self.counts if isinstance(value, str)}
        for mark in _SEPARATORS:
            parts = {part.strip() for text in texts for part in text.split(mark) if part.strip()}
            if any(mark in text for text in texts) and len(parts) < len(texts):
                return mark
        return None

    def separator_for(self, knows: Callable[[str], bool]) -> str | None:
        """Return what stands between several labels in one text, if splitting there gives known names alone."""
        texts = {value for value in self.counts if isinstance(value, str)}
        if all(map(knows, texts)):
            return None
        for mark in _SEPARATORS:
            if all(knows(part.strip()) for text in texts for part in text.split(mark) if part.strip()):
                return mark
        return None

    def describe(self, *, limit: int = 8) -> str:
        """List the values with their shares, the most frequent ones first."""
        total = max(self.labelled, 1)
        shown = ", ".join(
            f"{value if isinstance(value, str) else number_name(value)!s} {100 * count / total:.1f} %"
            for value, count in self.counts.most_common(limit)
        )
        more = len(self.counts) - limit
        return f"{shown} and {more} more" if more > 0 else shown


def survey_labels(source: Source, task: str, columns: Columns, *, multi_label: bool = False) -> LabelSurvey:
    """Read a source once and count the values of its column of labels.

    The survey has no column where the source has none, or no row. The problems of rows are reported only where no row
    can be read; otherwise the reading of the examples reports them.

    Raises:
        DataError: The source or all of its rows cannot be read, or it has no columns for the task.
    """
    survey = LabelSurvey()
    wanted: Sequence[str] | None = None
    if source.columns is not None:
        survey.columns = tuple(source.columns)
        survey.column = _column_of(source, task, columns, survey.columns)
        wanted = [survey.column]
    is_list = multi_label or task == "token-classification"
    problems = Problems(source.name)
    for record in source.records(problems, wanted):
        names = tuple(record.values)
        if names == (BARE,) and not columns.names:
            survey.rows += 1
            survey.missing += 1
            continue
        if not survey.column:
            survey.columns = survey.columns or names
            survey.column = _column_of(source, task, columns, names)
            if not survey.column:
                return survey
        survey.add(record.values.get(survey.column), is_list=is_list)
        if survey.is_full:
            break
    if not survey.rows:
        problems.raise_if_any()
    return survey


def _column_of(source: Source, task: str, columns: Columns, names: Sequence[str]) -> str:
    if task not in LABELLED_TASKS:
        return ""
    layout = choose_columns(columns, task, names, name=source.name, is_table=source.is_table)
    return layout.tags or layout.label or ""


def too_many(source: Source, survey: LabelSurvey) -> DataError:
    """Return the error for a column with too many different values."""
    return DataError(
        f"{source.name}: more than {MOST_LABELS} different values in {survey.column!r}; is it the column of labels?"
    )
