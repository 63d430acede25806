"""Answers against a plain reading of the reference script's rules, with transformers' features and logits."""

from __future__ import annotations

import json
from collections import defaultdict
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import transformers

import qdq
from qdq.tasks.evaluate import score_model
from qdq.tasks.evaluation_settings import EvaluationSettings
from qdq.tasks.model_under_test import open_model_under_test
from qdq.tasks.squad import answer_scores

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from tests.tasks.conftest import TinyModels

EXACT = 1e-6


def questions_of(path: Path) -> list[dict[str, Any]]:
    document = json.loads(path.read_text())
    return [
        {**qa, "context": paragraph["context"]}
        for article in document["data"]
        for paragraph in article["paragraphs"]
        for qa in paragraph["qas"]
    ]


def answer_of_transformers(
    tokenizer: PreTrainedTokenizerBase,
    model: nn.Module,
    question: dict[str, Any],
    *,
    seq_len: int,
    stride: int,
    n_best: int,
    longest: int,
) -> tuple[str, float]:
    """The best span of all windows, and how much higher the lowest score of no answer is."""
    context = question["context"]
    features = tokenizer(
        question["question"],
        context,
        truncation="only_second",
        max_length=seq_len,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    spans, nulls = [], []
    for window in range(len(features["input_ids"])):
        inputs = {name: torch.tensor([features[name][window]]) for name in tokenizer.model_input_names}
        with torch.no_grad():
            output = model(**inputs)
        start, end = output.start_logits[0].numpy(), output.end_logits[0].numpy()
        nulls.append(start[0] + end[0])
        in_context = [sequence == 1 for sequence in features.sequence_ids(window)]
        usable = [index for index in range(len(start)) if in_context[index]]
        starts = sorted(usable, key=lambda index: -start[index])[:n_best]
        ends = sorted(usable, key=lambda index: -end[index])[:n_best]
        offsets = features["offset_mapping"][window]
        spans += [
            (start[i] + end[j], context[offsets[i][0] : offsets[j][1]])
            for i in starts
            for j in ends
            if i <= j < i + longest
        ]
    score, text = max(spans, key=lambda span: span[0], default=(-np.inf, ""))
    return text, float(min(nulls) - score)


@pytest.fixture(scope="module")
def reader(tiny_models: TinyModels, root: Path) -> Path:
    folder: Path = tiny_models.save(root / "reader", "question-answering", initializer_range=0.25)
    return folder


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"seq_len": 96, "stride": 20},
        {"n_best": 3, "max_answer_length": 5, "seq_len": 64, "stride": 8},
    ],
    ids=["defaults", "windows", "few-and-short"],
)
def test_squad(reader: Path, small_squad: Path, options: dict[str, int]) -> None:
    tokenizer = transformers.AutoTokenizer.from_pretrained(reader)
    model = transformers.AutoModelForQuestionAnswering.from_pretrained(reader).eval()
    rules = {"seq_len": 384, "stride": 128, "n_best": 20, "max_answer_length": 30, **options}
    longest = rules.pop("max_answer_length")
    asked = questions_of(small_squad)[::3]
    found = [answer_of_transformers(tokenizer, model, question, longest=longest, **rules) for question in asked]
    ordered = sorted(difference for _, difference in found)
    # Between two differences: at one of them the last digit of a logit would decide.
    threshold = sum(ordered[len(ordered) // 2 - 1 : len(ordered) // 2 + 1]) / 2
    predicted = ["" if difference > threshold else text for text, difference in found]
    scores = np.array(
        [
            answer_scores(text, [answer["text"] for answer in question["answers"]])
            for text, question in zip(predicted, asked, strict=True)
        ]
    )
    answerable = np.array([not question["is_impossible"] for question in asked])
    assert 0 < answerable.mean() < 1
    assert 0 < scores[:, 1].mean() < 1

    rows = [
        {
            "id": question["id"],
            "question": question["question"],
            "context": question["context"],
            "answers": {
                "text": [answer["text"] for answer in question["answers"]],
                "answer_start": [answer["answer_start"] for answer in question["answers"]],
            },
        }
        for question in asked
    ]
    result = qdq.evaluate(
        reader, "question-answering", rows, resamples=0, null_threshold=threshold, batch_size=5, **options
    )
    assert result.examples == len(asked)
    assert result.metrics == {
        "f1": pytest.approx(scores[:, 1].mean(), abs=EXACT),
        "exact_match": pytest.approx(scores[:, 0].mean(), abs=EXACT),
        "has_answer_f1": pytest.approx(scores[answerable, 1].mean(), abs=EXACT),
        "has_answer_exact_match": pytest.approx(scores[answerable, 0].mean(), abs=EXACT),
        "no_answer_accuracy": pytest.approx(scores[~answerable, 0].mean(), abs=EXACT),
    }


def test_always_answer_and_never_answer(reader: Path, small_squad: Path) -> None:
    model = open_model_under_test(reader, "question-answering")
    runs = {
        name: score_model(model, "question-answering", small_squad, settings).table
        for name, settings in {
            "always": EvaluationSettings(num_samples=12, always_answer=True),
            "never": EvaluationSettings(num_samples=12, null_threshold=-1e9),
        }.items()
    }
    for table in runs.values():
        assert 0 < table["answerable"].sum() < 12
    assert (runs["always"]["exact"][runs["always"]["answerable"] == 0] == 0).all()
    np.testing.assert_array_equal(runs["never"]["exact"], 1 - runs["never"]["answerable"])
    np.testing.assert_array_equal(runs["never"]["f1"], 1 - runs["never"]["answerable"])


def test_where_every_question_has_an_answer_none_is_left_out(reader: Path, small_squad: Path) -> None:
    rows = [question for question in questions_of(small_squad) if not question["is_impossible"]][:12]
    rows = [
        {
            **{name: row[name] for name in ("id", "question", "context")},
            "answers": {"text": [row["answers"][0]["text"]], "answer_start": [row["answers"][0]["answer_start"]]},
        }
        for row in rows
    ]
    found = {
        name: qdq.evaluate(reader, "question-answering", rows, resamples=0, **options)
        for name, options in {
            "default": {},
            "always": {"always_answer": True},
            "never": {"null_threshold": -1e9},
        }.items()
    }
    assert found["default"].metrics == found["always"].metrics
    assert list(found["default"].metrics) == ["f1", "exact_match"]
    assert 'so "no answer" is not considered' in found["default"].notes[0]
    assert found["always"].notes == ()
    assert found["never"].metrics == {"f1": 0, "exact_match": 0}


def test_every_question_is_answered_once_and_in_its_place(reader: Path, small_squad: Path) -> None:
    """Windows of one context are computed in several batches; the questions come out in their own order."""
    asked = questions_of(small_squad)
    result = score_model(
        open_model_under_test(reader, "question-answering"),
        "question-answering",
        small_squad,
        EvaluationSettings(seq_len=64, stride=12, batch_size=3, num_samples=20),
    )
    assert len(result.table["f1"]) == 20
    assert not np.isnan(np.column_stack(list(result.table.values()))).any()
    contexts = defaultdict(int)
    for question in asked:
        contexts[question["context"]] += 1
    assert len(contexts) == 8
