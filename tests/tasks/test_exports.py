"""Every task that can be exported: the file's figures are those of the checkpoint that it was made from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import qdq
from qdq.data.text import sample_text

if TYPE_CHECKING:
    from pathlib import Path

    from tests.tasks.conftest import TinyModels

TEXTS = sample_text("heldout").read_text(encoding="utf-8").splitlines()[:16]
LETTERS = "abcdefghijklmnopqrstuvwxyz"
TAGS = ["O", "B-x", "I-x"]


def tokens_of(text: str) -> dict[str, Any]:
    words = text.split()
    return {"tokens": words, "ner_tags": [TAGS[(3 * len(word)) % 5 % 3] for word in words]}


def question_of(text: str) -> dict[str, Any]:
    word = text.split()[-2]
    return {
        "id": text[:9],
        "question": "what comes last but one?",
        "context": text,
        "answers": {"text": [word], "answer_start": [text.rindex(word)]},
    }


ROWS: dict[str, Any] = {
    "token-classification": [tokens_of(text) for text in TEXTS],
    "question-answering": [question_of(text) for text in TEXTS],
    "masked-lm": TEXTS,
}


@pytest.mark.parametrize("task", ROWS)
def test_the_file_equals_the_checkpoint(task: str, tiny_models: TinyModels, tmp_path: Path) -> None:
    labels = {"id2label": dict(enumerate(TAGS)), "label2id": {tag: index for index, tag in enumerate(TAGS)}}
    changes = {"num_labels": 3, **labels} if task == "token-classification" else {}
    folder = tiny_models.save(tmp_path / "model", task, num_hidden_layers=1, hidden_size=16, **changes)
    if task == "token-classification":
        tiny_models.balance(folder, TEXTS)
    qdq.export(folder, tmp_path / "export", target=None)
    expected = qdq.evaluate(folder, task, ROWS[task], resamples=0)
    found = qdq.evaluate(tmp_path / "export", task, ROWS[task], resamples=0, batch_size=5, threads=1)
    assert found.runtime == "onnxruntime"
    assert found.metrics == pytest.approx(expected.metrics, rel=1e-4)
    assert any(value > 0 for value in found.metrics.values())


def test_a_file_without_token_types_is_told_of_pairs(
    tiny_models: TinyModels, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tiny_models.save(tmp_path / "model", "sequence-classification", num_hidden_layers=1, hidden_size=16)
    interface = qdq.ExportInterface(token_type_ids=False)
    qdq.export(folder, tmp_path / "export", target=None, interface=interface)
    warning = "takes no token_type_ids: the second text of a pair has type 0"
    qdq.evaluate(tmp_path / "export", "sequence-classification", [{"text": TEXTS[0], "label": 0}], resamples=0)
    assert warning not in caplog.text
    pair = {"sentence1": TEXTS[0], "sentence2": TEXTS[1], "label": 0}
    qdq.evaluate(tmp_path / "export", "sequence-classification", [pair], resamples=0)
    assert caplog.text.count(warning) == 1
