"""The kinds of examples: what a row means for a task.

``index`` counts the examples that come out, from 0; ``place`` is where the row stands in its source, for messages.
``None`` in the place of a label means that the row has none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

__all__ = ["ChoiceExample", "Example", "IdsExample", "Label", "QuestionExample", "TextExample", "TokenExample"]

#: A class, a score, or a vector of 0 and 1 for a head that gives several labels.
Label: TypeAlias = int | float | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TextExample:
    """A text, or a pair that the model reads together."""

    index: int
    place: str
    text: str
    text_pair: str | None = None
    label: Label | None = None


@dataclass(frozen=True, slots=True)
class TokenExample:
    """Words, each with the id of its tag."""

    index: int
    place: str
    tokens: tuple[str, ...]
    tags: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class QuestionExample:
    """A question and the text that may answer it.

    ``answers`` are accepted texts and ``starts`` the characters of the context at which they begin; both are empty
    where the text gives no answer, and None where nobody says.
    """

    index: int
    place: str
    id: str
    question: str
    context: str
    answers: tuple[str, ...] | None = None
    starts: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class ChoiceExample:
    """A text and its possible continuations; ``label`` is the number of the right one."""

    index: int
    place: str
    text: str
    choices: tuple[str, ...]
    label: int | None = None


@dataclass(frozen=True, slots=True)
class IdsExample:
    """Token ids as they are, special tokens included. ``label`` may be a tuple of one id a token."""

    index: int
    place: str
    input_ids: tuple[int, ...]
    attention_mask: tuple[int, ...] | None = None
    token_type_ids: tuple[int, ...] | None = None
    label: Label | tuple[int, ...] | None = None


Example: TypeAlias = TextExample | TokenExample | QuestionExample | ChoiceExample | IdsExample
