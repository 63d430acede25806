"""Calibration and training read the tokens that sentence-transformers reads, and train the vectors that it computes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.losses import CoSENTLoss
from sentence_transformers.sentence_transformer.modules import Pooling

import qdq
from calibration.settings import CalibrationSettings
from qdq.data.example_types import TextExample
from qdq.errors import ConfigError
from qdq.training.embedding_loss import sts_loss
from qdq.training.epoch_loader import EpochLoader
from qdq.training.sentence_vectors import SentenceVectors, notes_on_training, prepare_pairs
from tests.sentence.conftest import TEXTS, WIDTH, save_encoder

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

SETTINGS: dict[str, Any] = {"cased": True, "lowercases": True, "length": 9}
SETTINGS |= {"prompts": {"a": "lake: "}, "default_prompt_name": "a"}


def test_calibration_reads_the_tokens_of_upstream(save_sentence_model: Callable[..., Path], tmp_path: Path) -> None:
    folder = save_sentence_model(Pooling(WIDTH), **SETTINGS)
    said: list[str] = []
    found = qdq.calibrate_checkpoint(folder, tmp_path / "out", list(TEXTS) * 8, recipe="linear", say=said.append)
    features = SentenceTransformer(str(folder), device="cpu").preprocess(list(TEXTS), prompt="lake: ")
    assert found.calibration["tokens"] == 8 * int(features["attention_mask"].sum())
    assert found.calibration["seq_len"] == 9
    assert "the default prompt of the model is put in front of every text: 'lake: '" in said
    # The same tokens without a prompt in the directory: the texts as upstream joins them.
    plain = save_sentence_model(Pooling(WIDTH), name="plain", **{**SETTINGS, "default_prompt_name": None})
    texts = [f"lake: {text}" for text in TEXTS] * 8
    other = qdq.calibrate_checkpoint(plain, tmp_path / "plain.out", texts, recipe="linear")
    assert other.calibration["data_sha256"] == found.calibration["data_sha256"]


def test_calibration_of_a_plain_encoder_reads_texts_as_they_are(tmp_path: Path) -> None:
    folder, said = save_encoder(tmp_path / "model"), []
    settings = CalibrationSettings(seq_len=40)
    found = qdq.calibrate_checkpoint(
        folder, tmp_path / "out", list(TEXTS) * 8, recipe="linear", settings=settings, say=said.append
    )
    assert found.calibration["seq_len"] == 40
    assert not [text for text in said if "prompt" in text]


@pytest.mark.parametrize("include", [True, False], ids=["included", "excluded"])
def test_training_has_the_loss_of_upstream(include: bool, save_sentence_model: Callable[..., Path]) -> None:
    torch.manual_seed(2)
    modules = (Pooling(WIDTH, ("cls", "mean"), include_prompt=include), Dense(2 * WIDTH, 6), Normalize())
    directory = qdq.open(save_sentence_model(*modules, **SETTINGS))
    examples = [TextExample(n, str(n), text, TEXTS[n - 1], float(n)) for n, text in enumerate(TEXTS)]
    loader = EpochLoader(
        prepare_pairs(examples, directory), directory.encoder, "sts", batch_size=4, seq_len=directory.max_length
    )
    model = qdq.load(directory).eval()
    (batch,) = loader(0)
    with torch.no_grad():
        found = sts_loss(model, batch, pooling=SentenceVectors.of(directory, seq_len=directory.max_length))
    upstream = SentenceTransformer(str(directory), device="cpu")
    sides = [torch.from_numpy(upstream.encode([getattr(e, side) for e in examples])) for side in ("text", "text_pair")]
    scores = torch.tensor([e.label for e in examples])
    expected = CoSENTLoss(upstream).compute_loss_from_embeddings(sides, scores)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_weights_behind_the_pooling_are_not_trained(save_sentence_model: Callable[..., Path]) -> None:
    directory = qdq.open(save_sentence_model(Pooling(WIDTH), Dense(WIDTH, 6), similarity_fn_name="dot"))
    vectors = SentenceVectors.of(directory, seq_len=9)
    assert not any(weight.requires_grad for weight in vectors.embedder.parameters())
    hidden = torch.randn(2, 5, WIDTH, requires_grad=True)
    vectors(hidden, torch.ones(2, 5)).sum().backward()
    assert hidden.grad is not None
    assert np.abs(hidden.grad.numpy()).max() > 0
    assert notes_on_training(directory) == [
        "2_Dense (Dense) is applied, and not trained",
        "the loss compares cosines, although the model compares its vectors by dot",
    ]


def test_a_teacher_with_other_vectors_is_refused(save_sentence_model: Callable[..., Path], tmp_path: Path) -> None:
    model = save_sentence_model(Pooling(WIDTH), Dense(WIDTH, 6))
    teacher = save_sentence_model(Pooling(WIDTH), Dense(WIDTH, 4), name="teacher")
    rows = [{"sentence1": TEXTS[0], "sentence2": text, "score": number} for number, text in enumerate(TEXTS)]
    task = replace(qdq.TaskSettings(), task="sts")
    with pytest.raises(ConfigError, match="its vectors have 4 numbers, the model's 6"):
        qdq.finetune_checkpoint(model, tmp_path / "out", rows, task=task, teacher=teacher)
