"""Translate the labels of a data set, names or numbers, to the ids of a head."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qdq.data.columns import LABELLED_TASKS, Columns, choose_columns, headerless_names
from qdq.data.records import quoted
from qdq.data.source import SourceLike, open_source
from qdq.errors import ConfigError, DataError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LabelError", "Labels", "find_labels", "is_unlabelled", "number_of"]

_SHOWN = 20  # labels that a message lists
_MOST = 10_000  # labels of a head; a column with more different values holds something else


class LabelError(ValueError):
    """A label cannot be used; the message is the problem of its row."""


@dataclass(frozen=True)
class Labels:
    """The labels of a head.

    Args:
        names: The name of each id.
        multi_label: Whether a row may have several labels; its label is then a vector of 0 and 1.
    """

    names: tuple[str, ...]
    multi_label: bool = False
    _ids: Mapping[str, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        folded: dict[str, int] = {}
        for index, name in enumerate(self.names):
            key = name.casefold()
            folded[key] = -1 if key in folded else index  # ambiguous: the names differ in capitals only
        exact = {name: index for index, name in enumerate(self.names)}
        usable = {key: index for key, index in folded.items() if index >= 0}
        object.__setattr__(self, "_ids", {**usable, **exact})

    @classmethod
    def of(cls, num_labels: int, label2id: Mapping[str, int] | None = None, *, multi_label: bool = False) -> Labels:
        """Return the labels of a model's configuration; without ``label2id`` they are ``LABEL_0``, ``LABEL_1``, ...

        Raises:
            ConfigError: An id of ``label2id`` is missing, is used twice or is not below ``num_labels``.
        """
        if not label2id:
            return cls(tuple(f"LABEL_{index}" for index in range(num_labels)), multi_label)
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

    @property
    def is_regression(self) -> bool:
        """Whether the head has a single output, which is a score and not a class."""
        return len(self.names) == 1 and not self.multi_label

    def knows(self, name: str) -> bool:
        """Return whether the head has a label of this name; capitals do not matter."""
        return name in self._ids or name.casefold() in self._ids

    def id_of(self, value: Any) -> int:
        """Return the id of a label that is given by its name or its id.

        Raises:
            LabelError: The head has no such label; the message lists its labels.
        """
        if isinstance(value, str):
            found = self._ids.get(value.strip(), self._ids.get(value.strip().casefold()))
            if found is not None:
                return found
        number = number_of(value)
        if number is None or not number.is_integer() or not 0 <= number < len(self.names):
            raise LabelError(f"the label {value!r} is not one of the head's labels: {self.describe()}")
        return int(number)

    def vector_of(self, value: Any) -> tuple[float, ...]:
        """Return a vector of 0 and 1 for a list of names or ids; such a vector is returned as it is.

        Raises:
            LabelError: The head has no such label.
        """
        values = value if isinstance(value, list | tuple) else [value]
        if len(values) == len(self.names) and all(not isinstance(one, str) and one in {0, 1} for one in values):
            return tuple(float(one) for one in values)
        ids = {self.id_of(one) for one in values}
        return tuple(float(index in ids) for index in range(len(self.names)))

    def describe(self) -> str:
        """List the labels with their ids, for messages."""
        shown = ", ".join(f"{index} {name!r}" for index, name in enumerate(self.names[:_SHOWN]))
        more = len(self.names) - _SHOWN
        return f"{shown} and {more} more" if more > 0 else shown


def number_of(value: Any) -> float | None:
    """Return a finite number, also one that is written as text; None for everything else."""
    if isinstance(value, bool | int | float):
        number = float(value)
    elif isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return None
    else:
        return None
    return number if math.isfinite(number) else None


def is_unlabelled(value: Any, *, score: bool) -> bool:
    """Return whether a value says that its row has no label.

    1. None, an empty text or NaN.
    2. For classes also -1 and ``-``: public sets write them where the label is secret or the annotators disagree.

    Args:
        value: The value in the column of labels.
        score: Whether labels are scores, for which -1 is a number like others.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    if isinstance(value, str) and not value.strip():
        return True
    return not score and (value in (-1, "-1", "-") if isinstance(value, str | int | float) else False)


def find_labels(
    source: SourceLike,
    task: str,
    *,
    columns: Columns | None = None,
    split: str | None = None,
    multi_label: bool = False,
) -> Labels:
    """Find the labels that a source uses, which a new head for it needs, in one pass.

    1. Scores (``sts``, or numbers with a fraction): one label.
    2. Whole numbers from 0: as many labels as the largest number says, with the names that the file has for them
       (``ClassLabel``) or ``LABEL_0``, ``LABEL_1``, ...
    3. Names: in alphabetical order, but ``O`` (no entity) first.
    4. With ``multi_label`` each row has a list of such names or numbers, or a vector. They count as vectors if all rows
       have lists of 0 and 1 of the same length and some list has a number twice.

    Args:
        source: See :func:`qdq.data.source.open_source`.
        task: One of :data:`qdq.data.columns.LABELLED_TASKS`.
        columns: The columns that the user names.
        split: The split of a saved data set that has several.
        multi_label: Whether a row may have several labels.

    Raises:
        DataError: The source has no label, both names and numbers, or more than 10000 different labels.
    """
    columns = columns or Columns()
    opened = open_source(source, split=split, header=lambda first: headerless_names(columns, task, first))
    column = ""
    seen: set[str | float] = set()
    vectors = _Vectors() if multi_label else None
    for record in opened:
        if not column:
            layout = choose_columns(columns, task, tuple(record.values), name=opened.name)
            column = layout.tags or layout.label or ""
            if not column or task not in LABELLED_TASKS:
                raise DataError(
                    f"{opened.name}: no column of labels for {task}; its columns are {quoted(list(record.values))}"
                )
        value = record.values.get(column)
        if vectors is not None:
            vectors.add(value)
        for one in value if isinstance(value, list | tuple) else (value,):
            if not is_unlabelled(one, score=task == "sts"):
                number = number_of(one)
                seen.add(str(one).strip() if number is None else number)
        if len(seen) > _MOST and task != "sts":
            raise DataError(
                f"{opened.name}: more than {_MOST} different values in {column!r}; is it the column of labels?"
            )
        if len(seen) > _MOST:
            break
    names = sorted(value for value in seen if isinstance(value, str))
    numbers = sorted(value for value in seen if not isinstance(value, str))
    if not column:
        raise DataError(f"{opened.name}: holds no row; give a source with at least one that has a label")
    if not seen:
        raise DataError(f"{opened.name}: no row has a label in {column!r}")
    if names and numbers:
        raise DataError(
            f"{opened.name}: {column!r} holds both names ({names[0]!r}) and numbers ({numbers[0]:g}); keep one"
        )
    if vectors is not None:
        return _multi_labels(names, numbers, vectors.width, opened.name)
    if task == "sts" or any(not number.is_integer() for number in numbers):
        return Labels.of(1)
    if numbers:
        known = opened.class_names.get(column, ())
        if numbers[0] < 0 or numbers[-1] >= _MOST:
            raise DataError(f"{opened.name}: {column!r} holds {numbers[0]:g} to {numbers[-1]:g}; classes count from 0")
        return Labels(tuple(known)) if numbers[-1] < len(known) else Labels.of(max(2, int(numbers[-1]) + 1))
    return Labels(tuple(sorted(names, key=lambda name: (name != "O", name))))


class _Vectors:
    """Find out whether the labels of all rows are vectors of 0 and 1."""

    def __init__(self) -> None:
        self._widths: set[int] = set()
        self._repeats = False

    def add(self, value: Any) -> None:
        """Add the labels of a row."""
        if is_unlabelled(value, score=False):
            return
        is_vector = isinstance(value, list | tuple) and all(not isinstance(one, str) and one in {0, 1} for one in value)
        self._widths.add(len(value) if is_vector else -1)
        self._repeats |= is_vector and len(set(value)) < len(value)

    @property
    def width(self) -> int | None:
        """The length of the vectors; None where the rows have lists of labels."""
        if len(self._widths) != 1 or not self._repeats:
            return None
        return max(self._widths) if max(self._widths) > 0 else None


def _multi_labels(names: list[str], numbers: list[float], width: int | None, source: str) -> Labels:
    if names:
        return Labels(tuple(names), multi_label=True)
    if not all(number.is_integer() and 0 <= number < _MOST for number in numbers):
        raise DataError(f"{source}: labels are {numbers[0]:g} to {numbers[-1]:g}; classes count from 0")
    return Labels.of(width or int(numbers[-1]) + 1, multi_label=True)
