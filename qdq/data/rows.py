"""Build one example from one row; a row that cannot be used raises an error whose message is the row's problem."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qdq.data.example_types import ChoiceExample, Example, IdsExample, Label, QuestionExample, TextExample, TokenExample
from qdq.data.label_values import is_missing, is_unlabelled, number_of
from qdq.data.labels import LabelError
from qdq.data.records import BARE, json_type, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qdq.data.columns import Layout
    from qdq.data.label_reading import LabelReading
    from qdq.data.records import Record

__all__ = ["RowError", "build_example", "is_labelled"]


class RowError(ValueError):
    """A row cannot be used; the message is its problem."""


def build_example(
    record: Record,
    layout: Layout,
    task: str,
    *,
    index: int,
    reading: LabelReading,
) -> Example:
    """Build the example of a row.

    Args:
        record: The row.
        layout: The columns to read.
        task: The task that the example is for.
        index: The index of the example.
        reading: How labels become ids of the head.

    Raises:
        RowError: The row has no such column, or a value has the wrong type.
        LabelError: The head has no such label.
    """
    values = record.values
    if record.repeated and (repeated := [name for name in layout.names if name in record.repeated]):
        raise RowError(f"more than one column is called {quoted(repeated)}; rename all but one")
    location = record.location
    label = _Label(values, reading)
    if layout.ids:
        return _ids(values, layout, task, label, index, location)
    if task == "question-answering":
        return _question(values, layout, index, location)
    if task == "multiple-choice":
        choices = _choices(values, layout)
        right = _right_choice(values, layout, choices, first=reading.first_number)
        whole = _after_stem(values, layout, choices)
        return ChoiceExample(index, location, _text(values, layout.text), whole, right)
    if task == "token-classification":
        tokens = _tokens(values, layout.tokens)
        tags = label.list_of(layout.tags)
        if tags is not None and len(tags) != len(tokens):
            raise RowError(f"{len(tokens)} tokens and {len(tags)} tags; each token has one")
        return TokenExample(index, location, tokens, tags)
    text, pair = _text_and_pair(values, layout)
    return TextExample(index, location, text, pair, label.of(layout.label, score=task == "sts"))


def is_labelled(example: Example) -> bool:
    """Return whether the example has the label, tags or answers that its task needs."""
    if isinstance(example, TokenExample):
        return example.tags is not None
    if isinstance(example, QuestionExample):
        return example.answers is not None
    return example.label is not None


class _Label:
    """Read the labels of one row as ids of the head."""

    def __init__(self, values: Mapping[str, Any], reading: LabelReading) -> None:
        self._values = values
        self._reading = reading

    def of(self, column: str | None, *, score: bool) -> Label | None:
        """Return the label in a column, or None where the row has none."""
        reading = self._reading
        value = None if column is None else self._values.get(column)
        score = score or (reading.labels is not None and reading.labels.is_regression)
        if reading.is_unlabelled(value, score=score):
            return None
        if score:
            number = number_of(value)
            if number is None:
                comma = isinstance(value, str) and number_of(value.replace(",", ".", 1)) is not None
                hint = "; write decimals with a point" if comma else ""
                raise LabelError(f"the score {value!r} is not a number{hint}")
            return number
        if reading.labels is not None and reading.labels.multi_label:
            return reading.vector_of(value)
        return reading.class_of(column, value)

    def list_of(self, column: str | None) -> tuple[int, ...] | None:
        """Return one label for each token, or None where the row has none."""
        value = None if column is None else self._values.get(column)
        if value is None:
            return None
        if not isinstance(value, list | tuple):
            raise RowError(f"{column!r} is {json_type(value)}, where a list with a tag for each token is expected")
        return tuple([self._reading.class_of(column, tag) for tag in value])


def _value(values: Mapping[str, Any], column: str) -> Any:
    if column not in values:
        if list(values) == [BARE]:
            raise RowError("a bare string, where an object with the named column was expected")
        raise RowError(f"no key {column!r}; it has {quoted(list(values))}")
    return values[column]


def _text(values: Mapping[str, Any], column: str | None) -> str:
    value = _value(values, column or "")
    if not isinstance(value, str):
        raise RowError(f"{column!r} is {json_type(value)}, not text" if column else f"{json_type(value)}, not text")
    return value


def _text_and_pair(values: Mapping[str, Any], layout: Layout) -> tuple[str, str | None]:
    if layout.tokens is not None:
        return " ".join(_tokens(values, layout.tokens)), None
    # A null is no text, as an empty field of a table is.
    text = "" if _is_null(_value(values, layout.text or "")) else _text(values, layout.text)
    if layout.choices:
        return text, _after_stem(values, layout, _choices(values, layout))[0]
    if layout.text_pair is None or _is_null(_value(values, layout.text_pair)):
        return text, None
    return text, _text(values, layout.text_pair)


def _is_null(value: Any) -> bool:
    return is_missing(value) and not isinstance(value, str)


def _tokens(values: Mapping[str, Any], column: str | None) -> tuple[str, ...]:
    value = _value(values, column or "")
    if not isinstance(value, list | tuple) or not all(isinstance(token, str) for token in value):
        raise RowError(f"{column!r} is {json_type(value)}, where a list of words is expected")
    return tuple(value)


def _choices(values: Mapping[str, Any], layout: Layout) -> tuple[str, ...]:
    """Return the choices as they stand in the row."""
    if len(layout.choices) > 1:
        return tuple(_text(values, column) for column in layout.choices)
    value = _value(values, layout.choices[0])
    found = value.get("text") if isinstance(value, dict) else value
    if not isinstance(found, list | tuple) or not all(isinstance(choice, str) for choice in found) or not found:
        raise RowError(f"{layout.choices[0]!r} is {json_type(value)}, where a list of texts is expected")
    return tuple(found)


def _after_stem(values: Mapping[str, Any], layout: Layout, choices: tuple[str, ...]) -> tuple[str, ...]:
    """Return the choices after the beginning that each of them completes."""
    stem = _text(values, layout.stem) if layout.stem is not None else ""
    return tuple(f"{stem} {choice}" for choice in choices) if stem else choices


def _right_choice(values: Mapping[str, Any], layout: Layout, choices: tuple[str, ...], *, first: int) -> int | None:
    """Return the index of the right choice, which rows write in one of four ways.

    1. The key of a choice, where the choices have keys (``{"text": [...], "label": ["A", ...]}``).
    2. A letter; A is the first choice.
    3. The text of a choice.
    4. A number from ``first``. In a column ``answer`` beside choices that are numbered from 1, it counts from 1.
    """
    value = None if layout.label is None else values.get(layout.label)
    if is_unlabelled(value, score=False):
        return None
    whole = values.get(layout.choices[0]) if len(layout.choices) == 1 else None
    keys = whole.get("label") if isinstance(whole, dict) else None
    if isinstance(keys, list | tuple) and value in keys:
        return keys.index(value)
    number = number_of(value)
    count = len(choices)
    if number is None and isinstance(value, str):
        text = value.strip()
        if len(text) == 1 and text.isalpha():
            number = ord(text.upper()) - ord("A")
        elif choices.count(text) == 1:
            number = choices.index(text)
    elif number is not None:
        # Sets such as WinoGrande have option1 and option2, and an answer of 1 or 2.
        from_one = layout.label == "answer" and layout.choices[0].endswith("1")
        number -= 1 if from_one else first
    if number is None or not float(number).is_integer() or not 0 <= number < count:
        raise LabelError(
            f"the label {value!r} is not one of the {count} choices, {first} to {count - 1 + first} or A to "
            f"{chr(64 + count)}"
        )
    return int(number)


def _question(values: Mapping[str, Any], layout: Layout, index: int, location: str) -> QuestionExample:
    question, context = _text(values, layout.question), _text(values, layout.context)
    given = values.get(layout.id) if layout.id is not None else None
    answers, starts = _answers(values, layout, context)
    return QuestionExample(index, location, str(index if given is None else given), question, context, answers, starts)


def _answers(
    values: Mapping[str, Any], layout: Layout, context: str
) -> tuple[tuple[str, ...], tuple[int, ...]] | tuple[None, None]:
    """Read answers as the Hub has them, ``{"text": [...], "answer_start": [...]}``, or as a list of single answers."""
    value = values.get(layout.answers) if layout.answers is not None else None
    if value is None:
        return ((), ()) if values.get("is_impossible") is True else (None, None)
    if isinstance(value, list) and all(isinstance(answer, dict) for answer in value):
        value = {key: [answer.get(key) for answer in value] for key in ("text", "answer_start")}
    texts, starts = (value.get("text"), value.get("answer_start")) if isinstance(value, dict) else (None, None)
    if not isinstance(texts, list | tuple) or not isinstance(starts, list | tuple) or len(texts) != len(starts):
        raise RowError(f"{layout.answers!r} must have 'text' and 'answer_start', two lists of the same length")
    for text, start in zip(texts, starts, strict=True):
        if not isinstance(text, str) or not isinstance(start, int) or not 0 <= start < max(1, len(context)):
            raise RowError(
                f"the answer {text!r} at character {start!r} is not within its context of {len(context)} characters"
            )
    return tuple(texts), tuple(starts)


def _ids(values: Mapping[str, Any], layout: Layout, task: str, label: _Label, index: int, location: str) -> IdsExample:
    ids = _whole_numbers(values, "input_ids")
    if ids is None or not ids:
        raise RowError("'input_ids' is empty")
    mask, types = _whole_numbers(values, "attention_mask"), _whole_numbers(values, "token_type_ids")
    for name, found in (("attention_mask", mask), ("token_type_ids", types)):
        if found is not None and len(found) != len(ids):
            raise RowError(f"{len(ids)} numbers in 'input_ids' and {len(found)} in {name!r}; they go together")
    token_labels = values.get(layout.label) if layout.label is not None else None
    if task in {"token-classification", "masked-lm"} and isinstance(token_labels, list | tuple):
        found = _whole_numbers(values, layout.label or "")
        if found is not None and len(found) != len(ids):
            raise RowError(f"{len(ids)} numbers in 'input_ids' and {len(found)} in {layout.label!r}; they go together")
        return IdsExample(index, location, ids, mask, types, found)
    return IdsExample(index, location, ids, mask, types, label.of(layout.label, score=task == "sts"))


def _whole_numbers(values: Mapping[str, Any], column: str) -> tuple[int, ...] | None:
    value = values.get(column)
    if value is None:
        return None
    if not isinstance(value, list | tuple) or not all(type(number) is int for number in value):
        raise RowError(f"{column!r} is {json_type(value)}, where a list of whole numbers is expected")
    return tuple(value)
