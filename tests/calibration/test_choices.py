"""Calibrating a model of multiple choice on its own data, and on plain text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers

import qdq
from calibration.choices import each_alone, read_choices
from qdq.analysis.checkpoint import analyze_checkpoint
from qdq.data.text import TextSample
from qdq.errors import DataError
from qdq.quantization.quantizer import Mode, set_mode

if TYPE_CHECKING:
    from pathlib import Path

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "sat", "ran", "flew", "on", "mat"]
ROWS: list[dict[str, Any]] = [
    {"text": "the cat sat", "choices": ["ran on", "flew on the mat"], "label": index % 2} for index in range(16)
]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    folder = tmp_path / "model"
    transformers.BertForMultipleChoice(config).save_pretrained(folder)
    (folder / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    return folder


@pytest.mark.parametrize("is_plain", [False, True], ids=["choices", "sentences"])
def test_a_model_of_multiple_choice_is_calibrated(model: Path, tmp_path: Path, is_plain: bool) -> None:
    data = tmp_path / ("a.txt" if is_plain else "a.jsonl")
    data.write_text("\n".join(row["text"] if is_plain else json.dumps(row) for row in ROWS))
    written = qdq.calibrate_checkpoint(model, tmp_path / "quantized", data)
    assert written.calibration["samples"] == len(ROWS) * (1 if is_plain else 2)
    quantized = qdq.load(tmp_path / "quantized")
    batch = {name: torch.ones(2, 3, 5, dtype=torch.int64) for name in ("input_ids", "attention_mask")}
    assert quantized(**batch).logits.shape == (2, 3)
    # Without its quantizers it is the model that transformers loads.
    set_mode(quantized, Mode.OFF)
    reference = transformers.BertForMultipleChoice.from_pretrained(model).eval()
    with torch.no_grad():
        torch.testing.assert_close(quantized(**batch).logits, reference(**batch).logits, atol=1e-5, rtol=1e-5)


def test_the_slots_of_such_a_model_are_ranked(model: Path, tmp_path: Path) -> None:
    qdq.calibrate_checkpoint(model, tmp_path / "quantized", ROWS)
    found = analyze_checkpoint(tmp_path / "quantized", ROWS)
    assert found.complete
    with pytest.raises(DataError, match="bare text"):
        analyze_checkpoint(tmp_path / "quantized", ["the cat sat"])


def test_each_choice_is_a_pair_with_its_text() -> None:
    found = list(read_choices(ROWS[:1]))
    assert found == [TextSample("the cat sat", "ran on"), TextSample("the cat sat", "flew on the mat")]
    assert list(read_choices(iter(ROWS[:1]))) == found
    assert list(read_choices(["a", "b"])) == [TextSample("a"), TextSample("b")]
    pairs = [{"sentence1": "a", "sentence2": "b"}]
    assert list(read_choices(pairs)) == [TextSample("a", "b")]


def test_what_is_no_text_at_all_is_refused() -> None:
    with pytest.raises(DataError, match="usual name"):
        list(read_choices([{"x": 1}]))


def test_batches_get_an_axis_of_choices() -> None:
    (batch,) = each_alone(iter([{"input_ids": torch.zeros(2, 4)}]))
    assert batch["input_ids"].shape == (2, 1, 4)
