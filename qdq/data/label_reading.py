"""Read the labels of rows as ids of a head, in the way that fits the whole column."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qdq.data.columns import Columns, choose_columns
from qdq.data.label_survey import MOST_LABELS
from qdq.data.label_values import is_mark, is_missing, number_of, spelled
from qdq.data.labels import LabelError, Labels
from qdq.data.records import BARE, Problems, quoted, share

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from qdq.data.label_survey import LabelSurvey
    from qdq.data.source import Source

__all__ = ["LabelReading", "choices_reading", "choose_reading"]

#: Names that heads have for true and false.
_BOOLEANS = {True: ("true", "yes"), False: ("false", "no")}


@dataclass(frozen=True)
class LabelReading:
    """How the values of a column become ids of a head.

    Args:
        labels: The labels of the head; None keeps numbers as they are.
        class_names: By column, the class names of its numbers, where the source has them.
        uses_class_names: Whether numbers stand for these names; None uses them where the head knows all of them.
        numbers_are_ids: Whether numbers are ids even where the names of the head are numbers.
        first_number: The number of the head's first label, 0 or 1.
        is_vector: Whether rows have vectors of 0 and 1; None decides row by row.
        separator: What stands between several labels in a text.
        takes_ids: Whether numbers were taken as ids although the labels of the head have names.
    """

    labels: Labels | None = None
    class_names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    uses_class_names: bool | None = None
    numbers_are_ids: bool = False
    first_number: int = 0
    is_vector: bool | None = None
    separator: str | None = None
    takes_ids: bool = False
    #: The ids of values that came before, by column, type and value: a column repeats a few values.
    _ids: dict[tuple[str | None, type, Any], int] = field(default_factory=dict, init=False, repr=False, compare=False)

    def is_unlabelled(self, value: Any, *, score: bool) -> bool:
        """Return whether a value says that its row has no label; -1 and ``-`` do unless the head has such a label."""
        if is_missing(value):
            return True
        if score or not is_mark(value):
            return False
        return not (self.labels is not None and self.labels.knows(spelled(value)))

    def class_of(self, column: str | None, value: Any) -> int:
        """Return the id of a label.

        Raises:
            LabelError: The head has no such label.
        """
        if type(value) not in (str, int):
            return self._class_of(column, value)
        key = (column, type(value), value)
        found = self._ids.get(key)
        if found is None:
            found = self._class_of(column, value)
            if len(self._ids) < MOST_LABELS:
                self._ids[key] = found
        return found

    def _class_of(self, column: str | None, value: Any) -> int:
        if self.labels is None:
            number = number_of(value)
            if number is None or not number.is_integer():
                raise LabelError(f"the label {value!r} is not a whole number, and no label names of a head are known")
            return int(number)
        if isinstance(name := self._name_of(column, value), str):
            return self.labels.id_of(name)
        if self.first_number and (number := number_of(value)) is not None:
            if number < self.first_number:
                raise LabelError(f"the label {value!r} is below 1, where the other rows count from 1")
            return self.labels.id_of(number - self.first_number, as_id=True)
        return self.labels.id_of(value, as_id=self.numbers_are_ids)

    def vector_of(self, value: Any) -> tuple[float, ...]:
        """Return a vector of 0 and 1 for the labels of a row.

        Raises:
            LabelError: The head has no such label.
        """
        assert self.labels is not None
        return self.labels.vector_of(value, is_vector=self.is_vector, separator=self.separator)

    def _name_of(self, column: str | None, value: Any) -> str | None:
        """Return the name that a number or a boolean stands for, if the source or the head has one."""
        assert self.labels is not None
        names = self.class_names.get(column or "", ())
        # The model may number its labels in another order than the data set: only the name says what a number means.
        if names and type(value) is int and 0 <= value < len(names):
            uses = self.uses_class_names
            if all(map(self.labels.knows, names)) if uses is None else uses:
                return names[value]
        is_true = _boolean(value)
        if is_true is None or self.labels.knows(str(value)):
            return None
        for name in _BOOLEANS[is_true]:
            if self.labels.knows(name):
                return name
        return self.labels.names[is_true] if isinstance(value, str) and len(self.labels.names) == 2 else None


def choose_reading(source: Source, survey: LabelSurvey, labels: Labels) -> LabelReading:
    """Choose how a column of labels is read for a head that is there already, and note what was chosen.

    1. Numbers that have names in the file (``ClassLabel``) are read by name, if the head knows these names.
    2. Where all names of the head are numbers, the numbers of the data are names, if they are among them.
    3. Other numbers are ids of the head.
    4. Numbers from 1 to the number of labels, without a 0, are the ids plus 1.

    -1 and ``-`` mean that a row has no label, unless the head has such a label.
    """
    names = source.class_names
    column = survey.column
    reading = LabelReading(labels, names)
    if labels.is_regression or survey.is_full or not survey.labelled:
        return reading
    if labels.multi_label:
        # Lists of other lengths, or of names, cannot be vectors; then a list such as [0, 1] has the labels 0 and 1.
        is_vector = None if survey.widths <= {len(labels.names)} else False
        separator = survey.separator_for(labels.knows)
        return LabelReading(labels, names, is_vector=is_vector, separator=separator)
    _note_marks(source, survey, labels)
    _, counts = survey.parts()
    numbers = {number for number in counts if not (is_mark(number) and not labels.knows(spelled(number)))}
    known = names.get(column, ())
    if not numbers or survey.booleans == survey.labelled:
        return reading
    if known and not all(number_of(name) is not None for name in known):
        used = [known[int(number)] for number in numbers if 0 <= number < len(known)]
        if used and all(map(labels.knows, used)):
            return LabelReading(labels, names, uses_class_names=True)
        if not labels.are_generic:
            source.note(
                f"the file calls its labels {quoted(known[:8])}, and the head knows other names ({labels.describe()}): "
                f"the numbers of {column!r} are taken as ids of the head, which is wrong if the order differs",
                logging.WARNING,
            )
        return LabelReading(labels, names, uses_class_names=False, takes_ids=not labels.are_generic)
    return _reading_of_numbers(source, survey, labels, numbers)


def _reading_of_numbers(source: Source, survey: LabelSurvey, labels: Labels, numbers: set[float]) -> LabelReading:
    names, column, count = source.class_names, survey.column, len(labels.names)
    are_ids = numbers <= set(range(count))
    if labels.by_number:
        if numbers <= set(labels.by_number) or not are_ids:
            return LabelReading(labels, names)
        source.note(
            f"{column!r} has {survey.describe()}, which are not the names of the head's labels ({labels.describe()}); "
            "they are taken as their ids",
            logging.WARNING,
        )
        return LabelReading(labels, names, numbers_are_ids=True)
    if len(numbers) > 1 and min(numbers) >= 1 and max(numbers) == count:
        source.note(
            f"{column!r} counts from 1 to {count}, and the head from 0: 1 is taken as {labels.names[0]!r} and {count} "
            f"as {labels.names[-1]!r}",
            logging.WARNING,
        )
        return LabelReading(labels, names, first_number=1)
    takes_ids = are_ids and not labels.are_generic
    if takes_ids:
        source.note(f"the numbers in {column!r} are taken as ids of the head: {labels.describe()}")
    return LabelReading(labels, names, takes_ids=takes_ids)


def choices_reading(source: Source, columns: Columns) -> LabelReading:
    """Choose how the right choices are read: their numbers count from 1 where none is 0 and some is that of the last.

    Rows with other than the usual number of choices decide nothing.
    """
    wanted = None if source.columns is None else tuple(source.columns)
    layout = None
    numbers: set[float] = set()
    largest = 0
    for record in source.records(Problems(source.name), wanted):
        if list(record.values) == [BARE]:
            return LabelReading()
        if layout is None:
            layout = choose_columns(columns, "multiple-choice", tuple(record.values), name=source.name)
        number = None if layout.label is None else number_of(record.values.get(layout.label))
        if number is not None and not is_mark(number):
            numbers.add(number)
        whole = record.values.get(layout.choices[0]) if len(layout.choices) == 1 else layout.choices
        whole = whole.get("text") if isinstance(whole, dict) else whole
        largest = max(largest, len(whole) if isinstance(whole, list | tuple) else 0)
    is_numbered = layout is not None and layout.label == "answer" and layout.choices[0].endswith("1")
    if len(numbers) < 2 or is_numbered or min(numbers) < 1 or max(numbers) != largest:
        return LabelReading()
    source.note(f"the right choices count from 1 to {largest}, so that 1 is the first one", logging.WARNING)
    return LabelReading(first_number=1)


def _note_marks(source: Source, survey: LabelSurvey, labels: Labels) -> None:
    marks = {
        value: count for value, count in survey.counts.items() if is_mark(value) and not labels.knows(spelled(value))
    }
    count = sum(marks.values())
    if 0 < count < survey.labelled:
        shown = quoted(sorted({spelled(value) for value in marks}))
        source.note(
            f"{share(count, survey.rows)} have {shown} in {survey.column!r}, which no label of the head is called "
            f"({labels.describe()}): they count as rows without a label and are skipped",
            logging.WARNING,
        )


def _boolean(value: Any) -> bool | None:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return {"true": True, "false": False}.get(value.strip().casefold())
    return None
