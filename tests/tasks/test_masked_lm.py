"""Perplexity and accuracy behind the mask, against transformers' logits and torch's cross entropy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
import transformers

import qdq
from qdq.data.batches import Masking, make_batches
from qdq.data.examples import read_examples
from qdq.data.tokenizer import load_encoder
from qdq.errors import DataError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.tasks.conftest import TinyModels

LABELS = ("labels",)


@pytest.mark.parametrize("only_mask", [True, False], ids=["only-mask", "80-10-10"])
@pytest.mark.parametrize("task", ["masked-lm", "pre-training"])
def test_real_sentences(
    tiny_models: TinyModels, tmp_path: Path, sentences: list[tuple[str, int]], task: str, only_mask: bool
) -> None:
    folder = tiny_models.save(tmp_path / "model", task)
    texts = [text for text, _ in sentences[:60]]
    found = qdq.evaluate(folder, "masked-lm", texts, resamples=0, seed=3, only_mask=only_mask)
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    total = right = tokens = 0.0
    for batch in make_batches(
        read_examples(texts, "masked-lm"),
        load_encoder(folder),
        "masked-lm",
        batch_size=1,
        masking=Masking(seed=3, only_mask=only_mask),
    ):
        with torch.no_grad():
            logits = model(**batch.inputs).logits.double()
        labels = batch["labels"]
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="sum"))
        right += int((logits.argmax(-1) == labels).sum())
        tokens += int((labels != -100).sum())
    assert tokens > 60
    assert found.settings["masked_tokens"] == tokens
    assert found.metrics["perplexity"] == pytest.approx(float(torch.tensor(total / tokens).exp()), rel=1e-4)
    assert found.metrics["accuracy"] == pytest.approx(right / tokens, abs=1e-6)
    assert found.scales == {"perplexity": 1, "accuracy": 100}


def test_nothing_to_mask(tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path / "model", "masked-lm")
    with pytest.raises(DataError, match="no position was masked"):
        qdq.evaluate(folder, "masked-lm", ["[SEP] [MASK]"])
