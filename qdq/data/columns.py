"""Choose the columns that a task reads: those the user names, or the usual ones of public data sets."""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from qdq.data.records import quoted
from qdq.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "LABELLED_TASKS",
    "TASKS",
    "TEXT_TASKS",
    "Columns",
    "Layout",
    "check_task",
    "choose_columns",
    "headerless_names",
]

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

#: The tasks whose labels are those of a head.
LABELLED_TASKS = ("sts", "sequence-classification", "next-sentence", "token-classification", "multiple-choice")


@dataclass(frozen=True)
class Columns:
    """The columns that a user names; for those that are None the usual names are tried.

    In a table without header the name of a column is its number, and the first is ``"0"``.

    Args:
        text: The text, or the first text of a pair. Without ``text_pair`` it is read alone.
        text_pair: The second text of a pair.
        label: The label or score.
        tokens: A list of words.
        tags: A list with the tag of each word.
        question: The question about a context.
        context: The text that may answer the question.
        answers: The answers, in the format of SQuAD on the Hub.
        id: The identifier of a question.
        choices: Several columns with one choice each, or one column with lists of choices.
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
        """All columns that were named."""
        values = (getattr(self, field.name) for field in fields(self))
        return tuple(name for value in values if value for name in ((value,) if isinstance(value, str) else value))


@dataclass(frozen=True)
class Layout:
    """The columns to read for a task; None for what the task or the source does not have.

    Args:
        stem: The beginning that each choice completes.
        ids: Whether the rows hold token ids instead of text.

    The other fields mean what they mean in :class:`Columns`.
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
    choices: tuple[str, ...] = ()
    stem: str | None = None
    ids: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All columns that are read."""
        values = (getattr(self, field.name) for field in fields(self) if field.name != "ids")
        return tuple(name for value in values if value for name in ((value,) if isinstance(value, str) else value))


# --- usual names ---

_Names = tuple[str, str | None]

#: Names of a text and its second text. The first entry whose columns all exist is used.
_TEXTS: tuple[_Names, ...] = (
    ("text", "text_pair"),
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "context"),
    ("question", "passage"),
    ("question", "sentence"),
    ("question1", "question2"),
    ("query", "passage"),
    ("query", "document"),
    ("sentence_1", "sentence_2"),
    ("sentence_a", "sentence_b"),
    ("text1", "text2"),
    ("#1 string", "#2 string"),
    ("text", None),
    ("sentence", None),
    ("question", None),
    ("query", None),
    ("passage", None),
    ("content", None),
    ("review", None),
    ("document", None),
    ("title", None),
)

_LABELS = (
    "label",
    "labels",
    "gold_label",
    "score",
    "similarity_score",
    "relatedness_score",
    "similarity",
    "target",
    "is_duplicate",
    "quality",
    "answer",
)
_SCORES = ("score", "similarity_score", "relatedness_score", "similarity", "label", "labels", "target")
_RIGHT_CHOICES = ("label", "labels", "answerkey", "answer", "gold", "correct")
_TAGS = ("ner_tags", "tags", "ner", "labels", "label", "pos_tags")

#: Names of the text before the choices and of the beginning that each choice completes.
_STEMS: tuple[_Names, ...] = (
    ("sent1", "sent2"),
    ("article", "question"),
    ("passage", "question"),
    ("context", "question"),
    ("premise", "question"),
    ("ctx", None),
    ("premise", None),
    ("goal", None),
    ("question_stem", None),
    ("question", None),
    ("context", None),
    ("sentence", None),
    ("prompt", None),
    ("query", None),
    ("text", None),
)
_CHOICE_LISTS = ("choices", "options", "endings", "candidates")
_NUMBERED_CHOICE = re.compile(r"(ending|choice|option|sol|answer|candidate)_?(\d+)")


class _Available:
    """The columns of a source, found by a usual name; capitals matter only where two columns differ in them alone."""

    def __init__(self, available: Iterable[str]) -> None:
        self.available = tuple(available)
        # Reversed, so that of names that differ in capitals the first one wins.
        self._folded = {name.casefold(): name for name in reversed(self.available)}

    def first(self, *names: str) -> str | None:
        """Return the column of the first name that the source has."""
        found = (name if name in self.available else self._folded.get(name) for name in names)
        return next((name for name in found if name is not None), None)

    def pair(self, pairs: Sequence[_Names]) -> _Names | None:
        """Return the columns of the first pair that the source has whole."""
        for one, two in pairs:
            first, second = self.first(one), None if two is None else self.first(two)
            if first is not None and (two is None or second is not None):
                return first, second
        return None


# --- choice of columns ---


def check_task(task: str) -> None:
    """Raise if there is no such task.

    Raises:
        ConfigError: The task is not one of :data:`TASKS`.
    """
    if task not in TASKS:
        raise ConfigError(f"there is no task {task!r} to read examples for; there are {', '.join(TASKS)}")


def choose_columns(
    columns: Columns, task: str, available: Sequence[str], *, name: str, is_table: bool = False
) -> Layout:
    """Choose the columns to read for a task.

    Args:
        columns: The columns that the user names.
        task: One of :data:`TASKS`.
        available: The columns of the source.
        name: The name of the source, for messages.
        is_table: Whether the columns are the first line of a file, which may be data.

    Raises:
        DataError: A column that the user names does not exist, or no column has a usual name for something that the
            task needs. The message lists the columns of the source.
    """
    if missing := [wanted for wanted in columns.names if wanted not in available]:
        raise DataError(f"{name}: no column {quoted(missing)}; its columns are {quoted(available)}")
    present = _Available(available)
    if task == "question-answering":
        layout = _question(columns, present)
    elif task == "multiple-choice":
        layout = _choice(columns, present)
    elif task == "token-classification":
        layout = _words(columns, present)
    else:
        layout = _texts(columns, present, task)
    if layout is None and len(available) == 1 and (found := [mark for mark in ";\t|" if mark in available[0]]):
        raise DataError(
            f"{name}: has a single column, {quoted(available)}; fields seem to stand between {quoted(found[:1])}, "
            "where a .csv file has commas and a .tsv file tabs"
        )
    if layout is None and list(available) == [""]:
        raise DataError(f"{name}: plain text has no columns, which {task} needs; give a .csv, .tsv or .jsonl file")
    if layout is None:
        nothing = f"{_lacking(task)} has a usual name among its columns {quoted(available)}"
        cure = _CURES[task]
        if is_table:
            cure += "; if the first line is data and no header, the columns are called 0, 1, ..."
        raise DataError(f"{name}: {nothing}; {cure}")
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


def _texts(columns: Columns, present: _Available, task: str) -> Layout | None:
    label = None
    if task in LABELLED_TASKS:
        label = columns.label or present.first(*(_SCORES if task == "sts" else _LABELS))
    if columns.text is None and columns.text_pair is None and present.first("input_ids") == "input_ids":
        return Layout(ids=True, label=label)
    text, pair = columns.text, columns.text_pair
    if text is None:
        found = present.pair(_TEXTS)
        if found is None:
            return _texts_of_other_tasks(columns, present, label)
        # A second text that the user names goes with the usual name of the first.
        text, pair = found[0], pair or found[1]
    return Layout(text=text, text_pair=pair, label=label)


def _texts_of_other_tasks(columns: Columns, present: _Available, label: str | None) -> Layout | None:
    """Read the words, or the text with its first choice, of a set for another task as texts."""
    if tokens := columns.tokens or present.first("tokens", "words"):
        return Layout(tokens=tokens, label=label)
    found = _choice(columns, present)
    return found and Layout(text=found.text, stem=found.stem, choices=found.choices, label=label)


def _question(columns: Columns, present: _Available) -> Layout | None:
    question = columns.question or present.first("question", "query")
    context = columns.context or present.first("context", "passage", "paragraph", "document")
    if question is None or context is None:
        return None
    answers = columns.answers or present.first("answers", "answer")
    return Layout(question=question, context=context, answers=answers, id=columns.id or present.first("id"))


def _words(columns: Columns, present: _Available) -> Layout | None:
    tags = columns.tags or columns.label or present.first(*_TAGS)
    if columns.tokens is None and present.first("input_ids") == "input_ids":
        return Layout(ids=True, label=tags)
    tokens = columns.tokens or present.first("tokens", "words")
    return (tokens and Layout(tokens=tokens, tags=tags)) or None


def _choice(columns: Columns, present: _Available) -> Layout | None:
    choices = columns.choices or _choice_columns(present)
    text, stem = (columns.text, columns.text_pair) if columns.text else present.pair(_STEMS) or (None, None)
    if not choices or text is None:
        return None
    return Layout(text=text, stem=stem, choices=choices, label=columns.label or present.first(*_RIGHT_CHOICES))


def _choice_columns(present: _Available) -> tuple[str, ...]:
    """Return the column of lists of choices, or the columns of one name that end in numbers, in their order."""
    if whole := present.first(*_CHOICE_LISTS):
        return (whole,)
    groups: dict[str, list[tuple[int, str]]] = {}
    for column in present.available:
        if match := _NUMBERED_CHOICE.fullmatch(column.casefold()):
            groups.setdefault(match[1], []).append((int(match[2]), column))
    # A single column such as answer_1 is no list of choices.
    several = [group for group in groups.values() if len(group) > 1]
    return tuple(column for _, column in sorted(several[0])) if several else ()


# --- tables without header ---

#: Names of the columns by the kinds of the fields (see :func:`_kind`) of a first row that is data.
_SHAPES = {
    "ntt": ("label", "sentence1", "sentence2"),
    "ett": ("label", "sentence1", "sentence2"),
    "ttn": ("sentence1", "sentence2", "label"),
    "tte": ("sentence1", "sentence2", "label"),
    "tn": ("sentence", "label"),
    "nt": ("label", "sentence"),
    "tnet": ("source", "label", "mark", "sentence"),
    "tntt": ("source", "label", "mark", "sentence"),
    "tttnntt": ("genre", "filename", "year", "index", "score", "sentence1", "sentence2"),
}


def headerless_names(columns: Columns, task: str, first: Sequence[str]) -> tuple[str, ...] | None:
    """Return the names of a table's columns when its first row is data, or None when it is a header.

    1. The user names columns by number: the columns are called by their numbers.
    2. The row has a column that the user names, or the usual names of what the task needs, or an empty field beside
       single words: it is a header.
    3. ``score, text, text`` or ``text, text, score``, with a number or nothing as score: a pair with its score.
    4. ``text, number`` or ``number, text``: a sentence with its label.
    5. ``text, number, anything, text``: the source, label, mark and sentence of CoLA.
    6. ``text, text, text, number, number, text, text``: the genre, file, year, number, score and sentences of STS-B.

    Args:
        columns: The columns that the user names.
        task: One of :data:`TASKS`.
        first: The fields of the first row.
    """
    numbers = tuple(str(number) for number in range(len(first)))
    names = [name.strip() for name in first]
    if columns.names:  # cases 1 and 2
        by_number = all(name in numbers for name in columns.names) and not set(columns.names) <= set(names)
        return numbers if by_number else None
    try:
        choose_columns(columns, task, names, name="")
    except DataError:
        kinds = "".join(_kind(field) for field in first)
        # pandas writes its index under an empty name: a column that is called so, beside names of one word.
        is_header = "e" in kinds and not any(len(name.split()) > 1 for name in names)
        return None if is_header else _SHAPES.get(kinds)
    return None


def _kind(field: str) -> str:
    """Return ``n`` for a number, ``e`` for an empty field and ``t`` for text."""
    if not field.strip():
        return "e"
    try:
        float(field)
    except ValueError:
        return "t"
    return "n"
