"""The settings of loading: their rules, and that a handle carries them to every job."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

import qdq
from qdq.errors import CheckpointError, ConfigError
from qdq.load_settings import LoadSettings
from qdq.models.huggingface import save_model
from qdq.models.registry import build, configure
from qdq.source import ModelDirectory

if TYPE_CHECKING:
    from pathlib import Path

TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two")
SIZES: dict[str, Any] = {
    "vocab_size": len(TOKENS),
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "max_position_embeddings": 24,
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A feature extractor without a tokenizer."""
    save_model(build(configure("bert", **SIZES)), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def words(tmp_path: Path) -> Path:
    """A directory with a tokenizer alone."""
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    return tmp_path / "words"


def test_the_rules() -> None:
    with pytest.raises(ConfigError, match=r"allow_missing is \('encoder',\), must be head or pooler"):
        LoadSettings(allow_missing=("encoder",))
    with pytest.raises(ConfigError, match=r"ignore_keys .* must be patterns of names"):
        LoadSettings(ignore_keys=("",))


def test_handles_differ_by_their_settings(folder: Path) -> None:
    plain, settings = qdq.open(folder), {"ignore_keys": ["pooler.*"]}
    other = qdq.open(folder, **settings)
    assert plain != other
    assert other == qdq.open(folder, **settings)
    assert hash(other) == hash(qdq.open(folder, **settings))
    assert qdq.open(other) is other
    assert qdq.open(plain, **settings) == other
    assert ModelDirectory.of(other, LoadSettings()) == plain
    assert (plain.has_pooler, other.has_pooler) == (True, False)
    assert (qdq.load(plain).pooler is None, qdq.load(other).pooler is None) == (False, True)


def test_drawn_weights_follow_the_seed_of_the_handle(folder: Path) -> None:
    def head(seed: int) -> torch.Tensor:
        directory = qdq.open(folder, allow_missing=["head"], seed=seed)
        return qdq.load(directory, "sequence-classification").head.classifier.weight  # type: ignore[union-attr, return-value]

    assert torch.equal(head(1), head(1))
    assert not torch.equal(head(1), head(2))


def test_the_tokenizer_of_another_directory(folder: Path, words: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no tokenizer; .*copy those of the model .*--tokenizer DIR"):
        _ = qdq.open(folder).tokenizer
    directory = qdq.open(folder, tokenizer=words)
    assert directory.tokenizer.encode("one two").ids == [2, 5, 6, 3]
    assert directory.encoder.mask_id == 4
    qdq.calibrate_checkpoint(directory, tmp_path / "q", ["one two", "two two one"], recipe="linear")
    assert (tmp_path / "q" / "vocab.txt").read_bytes() == (words / "vocab.txt").read_bytes()
    qdq.export(directory, tmp_path / "e", target=None)
    assert (tmp_path / "e" / "vocab.txt").is_file()
    with pytest.raises(CheckpointError, match="nowhere: no such directory; give a directory with tokenizer files"):
        qdq.open(folder, tokenizer=tmp_path / "nowhere")


def test_evaluate_takes_handles(folder: Path, words: Path) -> None:
    directory = qdq.open(folder, tokenizer=words)
    rows = [{"sentence1": "one", "sentence2": two, "score": n} for n, two in enumerate(("two", "one", "one two"))]
    result = qdq.evaluate(directory, "sts", rows, against=directory, resamples=0)
    assert result.against is not None
    assert result.metrics == pytest.approx(result.against.metrics, nan_ok=True)
