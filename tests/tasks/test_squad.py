"""The scores of answers against the published rules, written down here once more, and against torchmetrics."""

from __future__ import annotations

import collections
import itertools
import json
import re
import string
from typing import TYPE_CHECKING

import pytest
import torchmetrics

from qdq.tasks.squad import answer_scores, normalized

if TYPE_CHECKING:
    from pathlib import Path


def published(prediction: str, answers: list[str]) -> tuple[float, float]:
    """SQuAD 2.0: lower, no punctuation, no articles, white space; best of the answers; no answer equals no answer."""

    def clean(text: str) -> str:
        text = "".join(letter for letter in text.lower() if letter not in set(string.punctuation))
        return " ".join(re.compile(r"\b(a|an|the)\b", re.UNICODE).sub(" ", text).split())

    def f1(true: str) -> float:
        gold, ours = clean(true).split(), clean(prediction).split()
        same = sum((collections.Counter(gold) & collections.Counter(ours)).values())
        if len(gold) == 0 or len(ours) == 0:
            return float(gold == ours)
        if same == 0:
            return 0.0
        precision, recall = same / len(ours), same / len(gold)
        return 2 * precision * recall / (precision + recall)

    golds = [answer for answer in answers if clean(answer)] or [""]
    return max(float(clean(gold) == clean(prediction)) for gold in golds), max(f1(gold) for gold in golds)


CASES = {
    "exact": ("Denver Broncos", ["Denver Broncos", "the Broncos"]),
    "article-and-case": ("The denver broncos!", ["Denver Broncos"]),
    "part": ("in the 10th and 11th centuries", ["10th and 11th centuries"]),
    "wrong": ("Rome", ["France"]),
    "no-answer-right": ("", []),
    "no-answer-wrong": ("", ["France"]),
    "answer-where-there-is-none": ("France", []),
    "nothing-left-of-the-answer": ("the", ["the"]),
    "one-answer-is-only-an-article": ("France", ["a", "France"]),
    "repeated-words": ("the cat the cat sat", ["cat cat"]),
    "unicode": ("Straße “X”", ["straße X"]),
}


@pytest.mark.parametrize("case", CASES)
def test_published_rules(case: str) -> None:
    assert answer_scores(*CASES[case]) == pytest.approx(published(*CASES[case]), abs=1e-12)


@pytest.mark.parametrize("case", [case for case, (_, answers) in CASES.items() if answers and normalized(answers[0])])
def test_torchmetrics_agrees_where_there_is_an_answer(case: str) -> None:
    prediction, answers = CASES[case]
    found = torchmetrics.functional.text.squad(
        {"prediction_text": prediction, "id": "1"},
        {"answers": {"text": answers, "answer_start": [0] * len(answers)}, "id": "1"},
    )
    ours = answer_scores(prediction, answers)
    assert ours == pytest.approx((float(found["exact_match"]) / 100, float(found["f1"]) / 100), abs=1e-6)


def test_every_pair_of_true_answers(data_dir: Path) -> None:
    articles = json.loads((data_dir / "squad" / "dev-subset.json").read_text())["data"]
    asked = [qa for article in articles for paragraph in article["paragraphs"] for qa in paragraph["qas"]]
    answers = [[answer["text"] for answer in qa["answers"]] for qa in asked]
    for mine, theirs in itertools.pairwise(answers):
        for prediction in {*mine[:1], *theirs[:1], ""}:
            assert answer_scores(prediction, mine) == pytest.approx(published(prediction, mine), abs=1e-12)
