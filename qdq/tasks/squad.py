"""Score an answer as SQuAD 2.0 does (Rajpurkar et al. 2018): exact match and F1 of the words."""

from __future__ import annotations

import re
import string
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["answer_scores", "normalized"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = dict.fromkeys(map(ord, string.punctuation))


def normalized(text: str) -> str:
    """Return the text in lower case, without ASCII punctuation and English articles, with single spaces."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def answer_scores(prediction: str, answers: Sequence[str]) -> tuple[float, float]:
    """Return exact match and F1 of a prediction, each for the true answer that gives the highest value.

    Args:
        prediction: The answer; empty for "no answer".
        answers: The true answers, none for a question without an answer. An answer that normalizing leaves empty does
            not count.
    """
    ours = normalized(prediction)
    # Answers are unique after normalizing; a question without an answer has the empty one.
    true = list(dict.fromkeys(filter(None, map(normalized, answers)))) or [""]
    return float(ours in true), max(_f1(ours.split(), answer.split()) for answer in true)


def _f1(ours: list[str], theirs: list[str]) -> float:
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))
