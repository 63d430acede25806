"""Endings of real sentences, the right one among three of other sentences; transformers' predictions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
import transformers

import qdq

if TYPE_CHECKING:
    from pathlib import Path

    from tests.tasks.conftest import TinyModels


def test_real_endings(tiny_models: TinyModels, tmp_path: Path, sentences: list[tuple[str, int]]) -> None:
    folder = tiny_models.save(tmp_path / "model", "multiple-choice")
    halves = [(words[: len(words) // 2], words[len(words) // 2 :]) for words in (t.split() for t, _ in sentences[:48])]
    begins, ends = ([" ".join(half) for half in side] for side in zip(*halves, strict=True))
    labels = [index % 4 for index in range(48)]
    rows = []
    for index, label in enumerate(labels):
        endings = [ends[(index + 5 * shift) % 48] for shift in range(1, 4)]
        endings.insert(label, ends[index])
        rows.append({"ctx": begins[index], **{f"ending{n}": text for n, text in enumerate(endings)}, "label": label})
    found = qdq.evaluate(folder, "multiple-choice", rows, resamples=100, batch_size=5)

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForMultipleChoice.from_pretrained(folder).eval()
    right = []
    for row in rows:
        endings = [row[f"ending{n}"] for n in range(4)]
        inputs = tokenizer([row["ctx"]] * 4, endings, return_tensors="pt", padding=True)
        with torch.no_grad():
            logits = model(**{name: value[None] for name, value in inputs.items()}).logits
        right.append(int(logits.argmax()) == row["label"])
    assert found.metrics == {"accuracy": pytest.approx(np.mean(right), abs=1e-6)}
    assert 0 < np.mean(right) < 1
