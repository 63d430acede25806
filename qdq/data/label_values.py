"""Say what a value in a column of labels is: a number, a name, or nothing."""

from __future__ import annotations

import json
import math
import re
from ast import literal_eval
from decimal import Decimal
from numbers import Real
from typing import Any

__all__ = ["folded", "is_code", "is_exact", "is_unlabelled", "list_of", "number_name", "number_of", "spelled"]

_GAPS = re.compile(r"[\s_-]+")
_CODE = re.compile(r"[+-]?(0\d+|\d{16,})")
_EXACT = 2**53  # beyond it, two whole numbers may be one float


def number_of(value: Any) -> float | None:
    """Return a finite number, also one that is written as text; None for everything else."""
    if isinstance(value, str):  # first, since the test of the next line takes long
        try:
            number = float(value)
        except ValueError:
            return None
    elif isinstance(value, Real | Decimal):
        try:
            number = float(value)
        except OverflowError:
            return None
    else:
        return None
    return number if math.isfinite(number) else None


def is_exact(value: Any) -> bool:
    """Return whether a number keeps its value as a float."""
    return not isinstance(value, int) or abs(value) < _EXACT


def number_name(number: float) -> str:
    """Return how a number is written as the name of a class: ``5`` for 5.0."""
    return f"{number:.0f}" if number.is_integer() else f"{number:g}"


def spelled(value: Any) -> str:
    """Return how a label is written as the name of a class."""
    number = number_of(value)
    return str(value).strip() if number is None else number_name(number)


def is_code(text: str) -> bool:
    """Return whether a text of digits is a code and no number.

    1. It has a leading zero: ``12`` and ``0012`` are different codes.
    2. It has so many digits that different codes are one number of floating point.
    """
    return _CODE.fullmatch(text) is not None


def folded(name: str) -> str:
    """Return a name without what people write in different ways: capitals, and ``_``, ``-`` or blanks between words."""
    text = name.strip()
    # The sign of a number is no gap.
    return text if number_of(text) is not None else _GAPS.sub(" ", text).casefold()


def is_unlabelled(value: Any, *, score: bool) -> bool:
    """Return whether a value says that its row has no label.

    1. None, an empty text or NaN.
    2. For classes also -1 and ``-``: public sets write them where the label is secret or the annotators disagree. A
       head may have classes of these names; :class:`qdq.data.label_reading.LabelReading` knows.

    Args:
        value: The value in the column of labels.
        score: Whether labels are scores, for which -1 is a number like others.
    """
    if is_missing(value):
        return True
    return not score and is_mark(value)


def is_missing(value: Any) -> bool:
    """Return whether there is no value: None, an empty text or NaN."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    return isinstance(value, str) and not value.strip()


def is_mark(value: Any) -> bool:
    """Return whether a value is one of those that public sets write where a row has no label."""
    if isinstance(value, str):
        return value.strip() in ("-", "-1", "-1.0")
    return isinstance(value, Real | Decimal) and value == -1


def list_of(value: Any, separator: str | None = None) -> list[Any]:
    """Return the labels of a row that may have several.

    Args:
        value: A list, one label, or, in a table, a text: ``["a", "b"]`` or ``a;b``.
        separator: What stands between labels in a text.
    """
    if isinstance(value, list | tuple):
        return list(value)
    if not isinstance(value, str):
        return [value]
    text = value.strip()
    if text.startswith("[") and text.endswith("]"):
        for parse in (json.loads, literal_eval):
            try:
                found = parse(text)
            except (ValueError, SyntaxError, RecursionError):
                continue
            if isinstance(found, list):
                return found
    return [part.strip() for part in text.split(separator) if part.strip()] if separator else [text]
