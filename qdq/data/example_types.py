"""The kinds of examples: what one row means for a task.

All of them begin with ``index``, which counts the examples of a source from 0, and ``location``, which says where the
row is in the source, for messages. A label of None means that the row has no label.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TypeAlias

__all__ = [
    "ChoiceExample",
    "Example",
    "IdsExample",
    "Label",
    "QuestionExample",
    "TextExample",
    "TokenExample",
    "fingerprint",
]

#: A class, a score, or a vector of 0 and 1 for a head with several labels.
Label: TypeAlias = int | float | tuple[float, ...]


@dataclass(frozen=True, slots=True)
class TextExample:
    """A text, or a pair that the model reads together."""

    index: int
    location: str
    text: str
    text_pair: str | None = None
    label: Label | None = None


@dataclass(frozen=True, slots=True)
class TokenExample:
    """Words with the ids of their tags."""

    index: int
    location: str
    tokens: tuple[str, ...]
    tags: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class QuestionExample:
    """A question and the context that may answer it.

    ``answers`` are the accepted texts and ``starts`` the characters of the context at which they begin. Both are empty
    where the context has no answer, and None where the row does not say.
    """

    index: int
    location: str
    id: str
    question: str
    context: str
    answers: tuple[str, ...] | None = None
    starts: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class ChoiceExample:
    """A text and its possible continuations; ``label`` is the index of the right one."""

    index: int
    location: str
    text: str
    choices: tuple[str, ...]
    label: int | None = None


@dataclass(frozen=True, slots=True)
class IdsExample:
    """Token ids with their special tokens, used as they are; ``label`` may be a tuple with an id for each token."""

    index: int
    location: str
    input_ids: tuple[int, ...]
    attention_mask: tuple[int, ...] | None = None
    token_type_ids: tuple[int, ...] | None = None
    label: Label | tuple[int, ...] | None = None


Example: TypeAlias = TextExample | TokenExample | QuestionExample | ChoiceExample | IdsExample


def fingerprint(example: Example) -> str:
    """Return a text that identifies the contents of an example wherever it is in its source.

    Resume files of training hold a checksum of it, so it must never change: the location is written under ``place``,
    the name that it had in the first release.
    """
    values = (
        ("place", "") if field.name == "location" else (field.name, getattr(example, field.name))
        for field in fields(example)
    )
    return f"{type(example).__name__}({', '.join(f'{name}={value!r}' for name, value in values)})"
