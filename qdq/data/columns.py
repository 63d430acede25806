"""Which column holds what: the usual names of public datasets, and names given by the user."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from qdq.data.formats import listing
from qdq.data.usual_columns import (
    CHOICE_LISTS,
    LABELS,
    NUMBERED_CHOICE,
    RIGHT_CHOICES,
    SCORES,
    STEMS,
    TAGS,
    TEXTS,
    Usual,
)
from qdq.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["LABELLED_TASKS", "TASKS", "TEXT_TASKS", "Columns", "Layout", "check_task", "settle"]

TEXT_TASKS = (
    "feature-extraction",
    "retrieval",
    "sts",
    "sequence-classification",
    "next-sentence",
    "masked-lm",
    "causal-lm",
    "pre-training",
)
TASKS = (*TEXT_TASKS, "token-classification", "question-answering", "multiple-choice")

#: The tasks whose examples have labels of a head.
LABELLED_TASKS = ("sts", "sequence-classification", "next-sentence", "token-classification", "multiple-choice")


@dataclass(frozen=True)
class Columns:
    """Columns by name; ``None`` where the usual public names are to be tried.

    A ``text`` without ``text_pair`` stands alone. ``choices`` are several columns, or one that holds lists. In a table
    without header the name of a column is its number, ``"0"`` the first.
    """

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    tokens: str | None = None
    tags: str | None = None
    question: str | None = None
    context: str | None = None
    answers: str | None = None
    id: str | None = None
    choices: tuple[str, ...] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """All names that were given."""
        values = (getattr(self, field.name) for field in fields(self))
        return tuple(name for value in values if value for name in ((value,) if isinstance(value, str) else value))


@dataclass(frozen=True)
class Layout:
    """The columns to read for a task; ``None`` where there is none."""

    text: str | None = None
    text_pair: str | None = None
    label: str | None = None
    tokens: str | None = None
    tags: str | None = None
    question: str | None = None
    context: str | None = None
    answers: str | None = None
    id: str | None = None
    choices: tuple[str, ...] = ()
    stem: str | None = None
    ids: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that are read."""
        values = (getattr(self, field.name) for field in fields(self) if field.name != "ids")
        return tuple(name for value in values if value for name in ((value,) if isinstance(value, str) else value))


def check_task(task: str) -> None:
    """Refuse a word that is no task.

    Raises:
        ConfigError: With the tasks there are.
    """
    if task not in TASKS:
        raise ConfigError(f"there is no task {task!r} to read examples for; there are {', '.join(TASKS)}")


def settle(columns: Columns, task: str, available: Sequence[str], *, name: str) -> Layout:
    """The columns to read for a task.

    Args:
        columns: Those asked for.
        task: One of :data:`TASKS`.
        available: Those there are.
        name: The origin of the rows, for messages.

    Raises:
        DataError: A column asked for is not there, or none has a usual name for something the task needs; the message
            lists those there are.
    """
    if missing := [wanted for wanted in columns.names if wanted not in available]:
        raise DataError(f"{name}: no column {listing(missing)}; its columns are {listing(available)}")
    usual = Usual(available)
    if task == "question-answering":
        layout = _question(columns, usual)
    elif task == "multiple-choice":
        layout = _choice(columns, usual)
    elif task == "token-classification":
        layout = _words(columns, usual)
    else:
        layout = _texts(columns, usual, task)
    if layout is None and len(available) == 1 and (found := [mark for mark in ";\t|" if mark in available[0]]):
        raise DataError(
            f"{name}: has a single column, {listing(available)}; fields seem to stand between {listing(found[:1])}, "
            "where a .csv file has commas and a .tsv file tabs"
        )
    if layout is None:
        nothing = f"{_lacking(task)} has a usual name among its columns {listing(available)}"
        raise DataError(f"{name}: {nothing}; {_CURES[task]}")
    return layout


_NAME_TEXT = "name it with --text-column"
_CURES = dict.fromkeys(TEXT_TASKS, _NAME_TEXT) | {
    "question-answering": "name them with Columns(question=..., context=...)",
    "multiple-choice": "name them with Columns(text=..., choices=...)",
    "token-classification": "name it with Columns(tokens=...)",
}


def _lacking(task: str) -> str:
    return {
        "question-answering": "no question with its context",
        "multiple-choice": "no text with its choices",
        "token-classification": "no list of tokens",
    }.get(task, "no text")


def _texts(columns: Columns, usual: Usual, task: str) -> Layout | None:
    label = None
    if task in LABELLED_TASKS:
        label = columns.label or usual.first(*(SCORES if task == "sts" else LABELS))
    if columns.text is None and columns.text_pair is None and usual.first("input_ids") == "input_ids":
        return Layout(ids=True, label=label)
    text, pair = columns.text, columns.text_pair
    if text is None:
        found = usual.pair(TEXTS)
        if found is None:
            return _texts_of_other_tasks(columns, usual, label)
        text, pair = found[0], pair or found[1]
    return Layout(text=text, text_pair=pair, label=label)


def _texts_of_other_tasks(columns: Columns, usual: Usual, label: str | None) -> Layout | None:
    """Words are a text too, and so is a question with its first choice."""
    if tokens := columns.tokens or usual.first("tokens", "words"):
        return Layout(tokens=tokens, label=label)
    found = _choice(columns, usual)
    return found and Layout(text=found.text, stem=found.stem, choices=found.choices, label=label)


def _question(columns: Columns, usual: Usual) -> Layout | None:
    question = columns.question or usual.first("question", "query")
    context = columns.context or usual.first("context", "passage", "paragraph", "document")
    if question is None or context is None:
        return None
    answers = columns.answers or usual.first("answers", "answer")
    return Layout(question=question, context=context, answers=answers, id=columns.id or usual.first("id"))


def _words(columns: Columns, usual: Usual) -> Layout | None:
    tags = columns.tags or columns.label or usual.first(*TAGS)
    if columns.tokens is None and usual.first("input_ids") == "input_ids":
        return Layout(ids=True, label=tags)
    tokens = columns.tokens or usual.first("tokens", "words")
    return (tokens and Layout(tokens=tokens, tags=tags)) or None


def _choice(columns: Columns, usual: Usual) -> Layout | None:
    choices = columns.choices or _choice_columns(usual)
    text, stem = (columns.text, columns.text_pair) if columns.text else usual.pair(STEMS) or (None, None)
    if not choices or text is None:
        return None
    return Layout(text=text, stem=stem, choices=choices, label=columns.label or usual.first(*RIGHT_CHOICES))


def _choice_columns(usual: Usual) -> tuple[str, ...]:
    """A column of lists, or the numbered columns of one name, by their number."""
    if whole := usual.first(*CHOICE_LISTS):
        return (whole,)
    families: dict[str, list[tuple[int, str]]] = {}
    for column in usual.available:
        if match := NUMBERED_CHOICE.fullmatch(column.casefold()):
            families.setdefault(match[1], []).append((int(match[2]), column))
    several = [family for family in families.values() if len(family) > 1]
    return tuple(column for _, column in sorted(several[0])) if several else ()
