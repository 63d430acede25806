"""The labels of a head: those that a model has, and those that a new head for a data set needs."""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qdq.data.columns import Columns, headerless_names
from qdq.data.label_survey import MOST_LABELS, LabelSurvey, survey_labels, too_many
from qdq.data.label_values import folded, is_exact, is_mark, is_unlabelled, list_of, number_name, number_of, spelled
from qdq.data.records import quoted, share
from qdq.data.source import Source, SourceLike, open_source
from qdq.errors import ConfigError, DataError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["LabelError", "Labels", "find_labels", "is_unlabelled", "number_of"]

_SHOWN = 20  # labels that a message lists

#: What programs write for a value that is missing; no class is called so.
_LOST = ("nan", "null", "n/a", "#n/a")

#: A number of rows is a rare exception below this share.
_RARE = 0.01


class LabelError(ValueError):
    """A label cannot be used; the message is the problem of its row."""


@dataclass(frozen=True)
class Labels:
    """The labels of a head.

    Args:
        names: The name of each id. A name that two ids have cannot be used in data.
        multi_label: Whether a row may have several labels; its label is then a vector of 0 and 1.
    """

    names: tuple[str, ...]
    multi_label: bool = False
    _ids: Mapping[str, int] = field(init=False, repr=False, compare=False)
    #: By number, the id of names that are numbers; empty unless all names are.
    by_number: Mapping[float, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Names that differ only in what folded() removes are told apart by their exact spelling.
        loose = [folded(name) for name in self.names]
        usable = {key: index for index, key in enumerate(loose) if loose.count(key) == 1} if self._is_short else {}
        exact = {name: index for index, name in enumerate(self.names)}
        twice = {name for name, count in Counter(self.names).items() if count > 1}
        exact = {name: index for name, index in exact.items() if name not in twice}
        object.__setattr__(self, "_ids", {**usable, **exact})
        numbers = [number_of(name) for name in self.names]
        found = {number: index for index, number in enumerate(numbers) if number is not None}
        object.__setattr__(self, "by_number", found if len(found) == len(self.names) else {})

    @classmethod
    def of(cls, num_labels: int, label2id: Mapping[str, int] | None = None, *, multi_label: bool = False) -> Labels:
        """Return the labels of a model's configuration; without ``label2id`` they are ``LABEL_0``, ``LABEL_1``, ...

        Raises:
            ConfigError: An id of ``label2id`` is missing, is used twice, is no number or is not below ``num_labels``.
        """
        if not label2id:
            return cls(tuple(f"LABEL_{index}" for index in range(num_labels)), multi_label)
        if strange := [name for name, index in label2id.items() if not _is_whole(index)]:
            raise ConfigError(
                f"label2id: the id of {quoted(strange)} is not a whole number, such as {label2id[strange[0]]!r}"
            )
        names = {int(index): str(name) for name, index in label2id.items()}
        problems = [
            f"id {index} of {name!r} is not below num_labels" for index, name in names.items() if index >= num_labels
        ]
        problems += [f"no name has id {index}" for index in range(num_labels) if index not in names]
        if len(names) < len(label2id):
            problems.append("two names have the same id")
        if problems:
            raise ConfigError(describe_problems(f"label2id, with num_labels {num_labels}", problems))
        return cls(tuple(names[index] for index in range(num_labels)), multi_label)

    @classmethod
    def of_ids(cls, num_labels: int, id2label: Mapping[int, str], *, multi_label: bool = False) -> Labels:
        """Return the labels that ``id2label`` of a configuration names.

        Raises:
            ConfigError: An id has no name.
        """
        if missing := [str(index) for index in range(num_labels) if index not in id2label]:
            raise ConfigError(
                f"id2label, with num_labels {num_labels}: the id {', '.join(missing[:_SHOWN])} has no name"
            )
        return cls(tuple(str(id2label[index]) for index in range(num_labels)), multi_label)

    @property
    def is_regression(self) -> bool:
        """Whether the head has a single output, which is a score and not a class."""
        return len(self.names) == 1 and not self.multi_label

    @property
    def are_generic(self) -> bool:
        """Whether the names say no more than numbers do: ``LABEL_0``, ``LABEL_1``, ..., or numbers themselves."""
        return self.names == Labels.of(len(self.names)).names or bool(self.by_number)

    @property
    def repeated(self) -> list[str]:
        """The names that two ids have."""
        return [name for name, count in Counter(self.names).items() if count > 1]

    def knows(self, name: str) -> bool:
        """Return whether the head has one label of this name; capitals do not matter, nor ``_`` or ``-`` for blanks."""
        return name in self._ids or folded(name) in self._ids

    def id_of(self, value: Any, *, as_id: bool = False) -> int:
        """Return the id of a label that is given by its name or its id.

        Where all names of a head are numbers, a number is a name.

        Args:
            value: The label.
            as_id: Take a number as an id even where the names of the head are numbers.

        Raises:
            LabelError: The head has no such label; the message lists its labels.
        """
        if not is_exact(value):
            value = str(value)  # as a float it may be another number
        if isinstance(value, str) and not (as_id and number_of(value) is not None):
            found = self._ids.get(value.strip(), self._ids.get(folded(value)))
            if found is not None:
                return found
            if value.strip() in self.repeated:
                ids = ", ".join(str(index) for index, name in enumerate(self.names) if name == value.strip())
                raise LabelError(
                    f"the label {value!r} is the name of the ids {ids} of the head; give ids in the data, or other "
                    "names in id2label of config.json"
                )
        number = number_of(value)
        if number is not None and self.by_number and not as_id and number in self.by_number:
            return self.by_number[number]
        if number is None or not number.is_integer() or not 0 <= number < len(self.names):
            raise LabelError(f"the label {value!r} is not one of the head's labels: {self.describe()}")
        return int(number)

    def vector_of(
        self, value: Any, *, is_vector: bool | None = None, separator: str | None = None
    ) -> tuple[float, ...]:
        """Return a vector of 0 and 1 for a list of names or ids; such a vector is returned as it is.

        Args:
            value: The labels of a row.
            is_vector: Whether the rows of the data have vectors; None decides by this row alone.
            separator: What stands between labels in a text.

        Raises:
            LabelError: The head has no such label.
        """
        values = list_of(value, separator)
        fits = len(values) == len(self.names) and all(not isinstance(one, str) and one in {0, 1} for one in values)
        if fits and is_vector is not False:
            return tuple(float(one) for one in values)
        ids = {self.id_of(one) for one in values}
        return tuple(float(index in ids) for index in range(len(self.names)))

    def describe(self) -> str:
        """List the labels with their ids, for messages."""
        shown = ", ".join(f"{index} {name!r}" for index, name in enumerate(self.names[:_SHOWN]))
        more = len(self.names) - _SHOWN
        return f"{shown} and {more} more" if more > 0 else shown

    @property
    def _is_short(self) -> bool:
        return len(self.names) <= MOST_LABELS


def _is_whole(value: Any) -> bool:
    try:
        int(value)
    except (TypeError, ValueError):
        return False
    return True


def find_labels(
    source: SourceLike,
    task: str,
    *,
    columns: Columns | None = None,
    split: str | None = None,
    multi_label: bool = False,
) -> Labels:
    """Find the labels that a source uses, which a new head for it needs, in one pass, and log what was decided.

    1. Scores (``sts``, or numbers with a fraction): one label.
    2. Whole numbers from 0, of which at most a third is missing: as many labels as the largest number says, with the
       names that the file has for them (``ClassLabel``) or ``LABEL_0``, ``LABEL_1``, ...
    3. Other whole numbers (ratings from 1 to 5, codes, -1 beside 0 and 1): a label for each, named by its number. -1
       means no label where the file has names for its numbers, or where fewer than 1 % of the rows have it.
    4. Names: in alphabetical order, but ``O`` (no entity) first.
    5. With ``multi_label`` each row has a list of such names or numbers, or a vector. They count as vectors if all rows
       have lists of 0 and 1 of the same length and some list has a number twice.

    Args:
        source: See :func:`qdq.data.source.open_source`.
        task: One of :data:`qdq.data.columns.LABELLED_TASKS`.
        columns: The columns that the user names.
        split: The split of a saved data set that has several.
        multi_label: Whether a row may have several labels.

    Raises:
        DataError: The source has no label or a single one, both names and numbers, or more than 10000 different labels.
    """
    columns = columns or Columns()
    words = task == "token-classification"
    opened = open_source(source, split=split, header=lambda first: headerless_names(columns, task, first), words=words)
    survey = survey_labels(opened, task, columns, multi_label=multi_label)
    if not survey.column and survey.columns:
        raise DataError(
            f"{opened.name}: no column of labels for {task}; its columns are {quoted(survey.columns)}; "
            "name it with --label-column"
        )
    if not survey.column:
        rows = f"none of its {survey.rows} rows has a label" if survey.rows else "holds no row"
        raise DataError(f"{opened.name}: {rows}; give a source with at least one that has a label")
    if task == "sts":
        return Labels.of(1)
    if survey.is_full:
        raise too_many(opened, survey)
    if multi_label:
        return _multi_labels(opened, survey)
    return _classes(opened, survey, is_tags=words)


def _classes(source: Source, survey: LabelSurvey, *, is_tags: bool) -> Labels:
    """Return the classes of a column in which each row, or each token, has one."""
    _drop_marks(source, survey, is_tags=is_tags)
    names, numbers = survey.parts()
    column = survey.column
    if not names and not numbers:
        raise DataError(f"{source.name}: no row has a label in {column!r}")
    if names and numbers:
        raise DataError(
            f"{source.name}: {column!r} holds both names ({min(names)!r}) and numbers ({number_name(min(numbers))}); "
            f"keep one: {survey.describe()}"
        )
    if survey.nested:
        raise DataError(
            f"{source.name}: {survey.nested} values in {column!r} are lists or objects, where one label is wanted; "
            "several labels per text need --multi-label (multi_label=True)"
        )
    what = "tokens have" if is_tags else "rows have"
    if len(names) + len(numbers) == 1:
        only = next(iter(names), None) or number_name(next(iter(numbers)))
        raise DataError(
            f"{source.name}: all {survey.labelled} {what} the label {only!r} in {column!r}; a classifier needs two "
            f"labels or more{'; another column may hold the tags: --label-column' if is_tags else ''}"
        )
    if any(not number.is_integer() for number in numbers):
        if is_tags:
            raise DataError(f"{source.name}: {column!r} holds tags with a fraction: {survey.describe()}")
        source.note(f"{column!r} has numbers with a fraction: the new head gives a score, not classes")
        return Labels.of(1)
    labels = (
        _of_numbers(source, survey, sorted(numbers), is_tags=is_tags) if numbers else _of_names(source, survey, names)
    )
    source.note(f"{column!r} has {len(labels.names)} labels for the new head: {survey.describe()}")
    count = len(survey.counts)
    if survey.labelled >= _SHOWN and not is_tags and count > survey.labelled / 2:
        source.note(
            f"{column!r} has {count} different labels in {survey.labelled} rows; is it the column of labels?",
            logging.WARNING,
        )
    return labels


def _drop_marks(source: Source, survey: LabelSurvey, *, is_tags: bool) -> None:
    """Decide whether -1 and ``-`` are labels, and remove them from the survey if they are not."""
    if is_tags or not survey.marks:
        return
    column, marks, total = survey.column, survey.marks, survey.rows
    others = [value for value in survey.counts if not is_mark(value)]
    if not others:
        raise DataError(
            f"{source.name}: no row has a label in {column!r}: {share(marks, total)} have "
            f"{quoted(sorted({spelled(value) for value in survey.counts}))}, which says that there is none"
        )
    numbers = sorted(number for value in others if (number := number_of(value)) is not None)
    if any(not number.is_integer() for number in numbers):
        return  # scores, of which -1 is one
    is_from_zero = len(numbers) == len(others) > 1 and numbers == list(range(len(numbers)))
    is_dash = any(isinstance(value, str) and value.strip() == "-" for value in survey.counts)
    is_named = bool(source.class_names.get(column))
    if not (is_dash or is_named or len(numbers) < len(others) or (is_from_zero and marks < _RARE * total)):
        level = logging.WARNING if is_from_zero else logging.INFO
        source.note(
            f"{share(marks, total)} have the label -1 in {column!r}, which is a class like the others; where it means "
            "that there is no label, remove these rows",
            level,
        )
        return
    mark = "-" if is_dash else "-1"
    source.note(
        f"{share(marks, total)} have {mark} in {column!r}, which is taken as no label: they are left out; to make it a "
        "class, give it a name",
        logging.WARNING,
    )
    for value in [value for value in survey.counts if is_mark(value)]:
        del survey.counts[value]


def _of_numbers(source: Source, survey: LabelSurvey, numbers: Sequence[float], *, is_tags: bool) -> Labels:
    known = source.class_names.get(survey.column, ())
    if numbers[0] >= 0 and numbers[-1] < len(known):
        return Labels(tuple(known))
    if is_tags and numbers[0] < 0:
        raise DataError(f"{source.name}: {survey.column!r} holds {numbers[0]:g} to {numbers[-1]:g}; tags count from 0")
    count = int(numbers[-1]) + 1
    # Some numbers may not occur in a part of the data; where most are missing they are no ids.
    if numbers[0] == 0 and count - len(numbers) <= count / 3:
        if missing := [str(number) for number in range(count) if number not in numbers]:
            source.note(
                f"no row has the label {', '.join(missing[:_SHOWN])} in {survey.column!r}; the new head has outputs "
                f"for 0 to {count - 1}",
                logging.WARNING,
            )
        return Labels.of(count)
    return Labels(tuple(number_name(number) for number in numbers))


def _of_names(source: Source, survey: LabelSurvey, names: Mapping[str, int]) -> Labels:
    spellings: dict[str, list[str]] = {}
    for name in names:
        spellings.setdefault(folded(name), []).append(name)
    alike = [sorted(group) for group in spellings.values() if len(group) > 1]
    if alike:
        shown = "; ".join(", ".join(f"{name!r} ({names[name]} times)" for name in group) for group in alike[:3])
        source.note(
            f"labels in {survey.column!r} differ in their spelling alone, and are different classes: {shown}",
            logging.WARNING,
        )
    if lost := [name for name in names if name.casefold() in _LOST]:
        source.note(
            f"{quoted(lost)} in {survey.column!r} looks like a lost value, and is read as a class "
            f"({survey.describe()}); remove these rows, or leave the field empty",
            logging.WARNING,
        )
    return Labels(tuple(sorted(names, key=lambda name: (name != "O", name))))


def _multi_labels(source: Source, survey: LabelSurvey) -> Labels:
    separator = survey.separator
    if separator is not None:
        source.note(f"labels in {survey.column!r} stand between {separator!r}: a row has several of them")
    found = LabelSurvey(column=survey.column)
    for value in survey.counts:
        for one in list_of(value, separator):
            found.add(one, is_list=False)
    names, numbers = found.parts()
    if not names and not numbers:
        raise DataError(f"{source.name}: no row has a label in {survey.column!r}")
    if names and numbers:
        raise DataError(
            f"{source.name}: {survey.column!r} holds both names ({min(names)!r}) and numbers "
            f"({number_name(min(numbers))}); keep one"
        )
    if names:
        return Labels(tuple(sorted(names)), multi_label=True)
    known = source.class_names.get(survey.column, ())
    if survey.vector_width is None and 0 <= min(numbers) <= max(numbers) < len(known):
        return Labels(tuple(known), multi_label=True)
    if not all(number.is_integer() and 0 <= number < MOST_LABELS for number in numbers):
        raise DataError(f"{source.name}: labels are {min(numbers):g} to {max(numbers):g}; classes count from 0")
    return Labels.of(survey.vector_width or int(max(numbers)) + 1, multi_label=True)
