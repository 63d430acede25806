"""The handle of a directory: what it says of checkpoints, exports and the files of sentence-transformers."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import torch

import qdq
from qdq.errors import CheckpointError, ConfigError
from qdq.models.huggingface import save_model
from qdq.models.registry import build, configure

if TYPE_CHECKING:
    from pathlib import Path

    from qdq.source import ModelDirectory

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
    """A float checkpoint with a vocabulary and a classifier."""
    save_model(build(configure("bert", **SIZES), "sequence-classification"), tmp_path / "model")
    (tmp_path / "model" / "vocab.txt").write_text("\n".join(TOKENS) + "\n")
    return tmp_path / "model"


def test_a_float_checkpoint(folder: Path) -> None:
    directory = qdq.open(folder)
    assert (directory.kind, directory.is_quantized, directory.is_export) == ("float", False, False)
    assert (directory.task, directory.head) == ("sequence-classification", "sequence-classification")
    assert (directory.quantization, directory.export, directory.target) == (None, None, None)
    assert (directory.pooling, directory.sentence_length, directory.max_length) == ("mean", None, 24)
    assert directory.tokenizer.encode("one two").ids == [2, 5, 6, 3]
    assert (directory.encoder.max_length, directory.encoder.mask_id) == (24, 4)
    assert directory.config.hidden_size == 8
    assert str(directory) == str(folder)


def test_everything_is_read_once(folder: Path) -> None:
    directory = qdq.open(folder)
    assert directory.config is directory.config
    assert directory.tokenizer is directory.tokenizer
    assert qdq.open(directory) is directory
    assert qdq.open(str(folder)) == directory
    torch.testing.assert_close(qdq.load(directory).state_dict(), qdq.load(folder).state_dict())


def test_a_quantized_checkpoint_has_a_record(folder: Path) -> None:
    record = {"format": 3, "recipe": {"name": "linear"}, "slots": {}, "calibration": {}}
    (folder / "quantization.json").write_text(json.dumps(record))
    directory = qdq.open(folder)
    assert directory.kind == "quantized"
    assert directory.quantization == record


def test_quantizers_without_their_record_do_not_pass_for_a_float_model(folder: Path) -> None:
    (folder / "quantizers.safetensors").touch()
    directory = qdq.open(folder)
    assert directory.is_quantized
    with pytest.raises(CheckpointError, match=r"has no quantization\.json"):
        _ = directory.quantization


def test_an_export_has_a_record_and_a_target(folder: Path) -> None:
    (folder / "model.onnx").touch()
    assert qdq.open(folder).kind == "export"
    assert qdq.open(folder).export is None
    record = {"format": 1, "target": "openvino", "recipe": None, "inputs": []}
    (folder / "export.json").write_text(json.dumps(record))
    directory = qdq.open(folder)
    assert (directory.export, directory.target) == (record, "openvino")
    assert directory.model_file == folder / "model.onnx"


def test_a_damaged_export_has_no_target(folder: Path) -> None:
    (folder / "export.json").write_text("{}")
    assert qdq.open(folder).target is None
    with pytest.raises(CheckpointError, match="not a format that this version reads"):
        _ = qdq.open(folder).export


@pytest.mark.parametrize("how", ["missing", "file"])
def test_what_is_no_directory_is_refused_in_one_wording(how: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    if how == "file":
        path.touch()
    reason = {"missing": "no such directory", "file": "is a file, not a directory"}[how]
    with pytest.raises(CheckpointError) as caught:
        qdq.open(path)
    cure = "give the directory of a checkpoint or an export; models are not downloaded"
    assert str(caught.value) == f"{path}: {reason}; {cure}"


def test_a_directory_without_configuration_says_so_when_it_is_asked(tmp_path: Path) -> None:
    directory = qdq.open(tmp_path)
    assert not directory.is_quantized
    with pytest.raises(CheckpointError, match=r"config\.json: no such file"):
        _ = directory.config
    with pytest.raises(CheckpointError, match="no tokenizer"):
        _ = directory.tokenizer


def test_opening_a_directory_loads_no_torch(folder: Path) -> None:
    program = f"import sys, qdq; qdq.open({str(folder)!r}).is_export; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)


# --- the files of sentence-transformers ---


def with_pooling(path: Path, config: object, *modules: str) -> ModelDirectory:
    """A directory that asks for a pooling, and for further modules."""
    (path / "1_Pooling").mkdir()
    (path / "1_Pooling" / "config.json").write_text(json.dumps(config))
    entries = [{"type": f"sentence_transformers.models.{name}"} for name in ("Transformer", "Pooling", *modules)]
    (path / "modules.json").write_text(json.dumps(entries))
    return qdq.open(path)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_max_tokens": True}, "max"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens"),
        ({"pooling_mode": "lasttoken"}, "lasttoken"),
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["max"]}, "max"),
        ({"word_embedding_dimension": 384}, "mean"),
    ],
    ids=str,
)
def test_pooling(config: dict[str, object], expected: str, tmp_path: Path) -> None:
    assert with_pooling(tmp_path, config, "Normalize").pooling == expected


def test_the_real_folder(minilm_dir: Path) -> None:
    directory = qdq.open(minilm_dir)
    assert (directory.pooling, directory.sentence_length, directory.max_length) == ("mean", 256, 256)
    assert directory.config.max_length == 512


@pytest.mark.parametrize(
    ("config", "modules", "culprit"),
    [
        ({"pooling_mode": "first"}, (), "the pooling first is not supported; choose one with --pooling"),
        ({"pooling_mode": ["cls", "mean"]}, (), "the poolings cls and mean are joined"),
        ({"pooling_mode": "mean"}, ("Dense",), r"2_Dense \(Dense\); --pooling .* leaves it out"),
        ([], (), "must hold a JSON object"),
    ],
    ids=["unknown", "two", "dense", "list"],
)
def test_pooling_that_is_not_supported(config: object, modules: tuple[str, ...], culprit: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=culprit):
        _ = with_pooling(tmp_path, config, *modules).pooling
