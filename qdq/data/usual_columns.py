"""The names that columns have in public datasets."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = [
    "CHOICE_LISTS",
    "LABELS",
    "NUMBERED_CHOICE",
    "RIGHT_CHOICES",
    "SCORES",
    "STEMS",
    "TAGS",
    "TEXTS",
    "Pair",
    "Usual",
]

Pair = tuple[str, str | None]

#: The first pair of this table whose columns all exist applies.
TEXTS: tuple[Pair, ...] = (
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

LABELS = (
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
SCORES = ("score", "similarity_score", "relatedness_score", "similarity", "label", "labels", "target")
RIGHT_CHOICES = ("label", "labels", "answerkey", "answer", "gold", "correct")
TAGS = ("ner_tags", "tags", "ner", "labels", "label", "pos_tags")

#: What comes before a choice: the first text and, where it has one, the beginning that each choice completes.
STEMS: tuple[Pair, ...] = (
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
CHOICE_LISTS = ("choices", "options", "endings", "candidates")
NUMBERED_CHOICE = re.compile(r"(ending|choice|option|sol|answer|candidate)_?(\d+)")


class Usual:
    """The columns there are, found by a usual name: as it is written, or else in other capitals."""

    def __init__(self, available: Iterable[str]) -> None:
        self.available = tuple(available)
        self._folded = {name.casefold(): name for name in reversed(self.available)}

    def first(self, *names: str) -> str | None:
        """The first of the names that there is."""
        found = (name if name in self.available else self._folded.get(name) for name in names)
        return next((name for name in found if name is not None), None)

    def pair(self, pairs: Sequence[Pair]) -> Pair | None:
        """The first of the pairs that there is whole."""
        for one, two in pairs:
            first, second = self.first(one), None if two is None else self.first(two)
            if first is not None and (two is None or second is not None):
                return first, second
        return None
