"""Which ONNX file a path means, and where its configuration and tokenizer are."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from qdq.errors import CheckpointError
from qdq.onnx_files import find_model_file, folder_with_tokenizer, model_file_of
from qdq.source import ModelDirectory

if TYPE_CHECKING:
    from pathlib import Path


def put(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("files", "found"),
    [
        (["model.onnx"], "model.onnx"),
        (["model.onnx", "model_quantized.onnx"], "model.onnx"),
        (["model_quantized.onnx", "config.json"], "model_quantized.onnx"),
        (["encoder-int8.onnx"], "encoder-int8.onnx"),
        (["config.json", "onnx/model.onnx", "onnx/model_q4.onnx"], "onnx/model.onnx"),
        (["config.json", "onnx/model_q4.onnx"], "onnx/model_q4.onnx"),
    ],
)
def test_the_file_of_a_folder(tmp_path: Path, files: list[str], found: str) -> None:
    put(tmp_path, *files)
    assert find_model_file(tmp_path) == model_file_of(tmp_path) == tmp_path / found
    assert model_file_of(tmp_path / found) == tmp_path / found
    directory = ModelDirectory.of(tmp_path)
    assert directory.kind == "export"
    assert directory.model_file == tmp_path / found


def test_several_files_are_listed(tmp_path: Path) -> None:
    put(tmp_path, "model_int8.onnx", "model_fp16.onnx", "config.json")
    with pytest.raises(CheckpointError, match=r"give one of them \(model_fp16\.onnx, model_int8\.onnx\)"):
        model_file_of(tmp_path)
    assert ModelDirectory.of(tmp_path).is_export


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
def test_a_checkpoint_stays_one_with_an_onnx_file_beside_it(tmp_path: Path, weights: str) -> None:
    put(tmp_path, "config.json", weights, "onnx/model.onnx", "model_quantized.onnx")
    assert find_model_file(tmp_path) is None
    assert ModelDirectory.of(tmp_path).kind == "float"
    assert model_file_of(tmp_path) == tmp_path / "model_quantized.onnx"  # who needs an ONNX file gets it


def test_a_folder_without_one(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"it has no model\.onnx and no other \.onnx file"):
        model_file_of(put(tmp_path, "config.json"))
    with pytest.raises(CheckpointError, match="no such file"):
        model_file_of(tmp_path / "nowhere")


def test_the_folder_of_the_tokenizer(tmp_path: Path) -> None:
    put(tmp_path, "config.json", "tokenizer.json", "onnx/model.onnx", "deep/er/model.onnx")
    assert folder_with_tokenizer(tmp_path / "onnx" / "model.onnx") == tmp_path
    put(tmp_path, "onnx/config.json")  # alone it is not enough: the tokenizer is above
    assert folder_with_tokenizer(tmp_path / "onnx" / "model.onnx") == tmp_path
    assert folder_with_tokenizer(tmp_path / "onnx" / "model.onnx", tokenizer=False) == tmp_path / "onnx"
    put(tmp_path, "onnx/vocab.txt")
    assert folder_with_tokenizer(tmp_path / "onnx" / "model.onnx") == tmp_path / "onnx"
    with pytest.raises(CheckpointError, match=r"deep/er has no config\.json and no tokenizer, .* copy them from"):
        folder_with_tokenizer(tmp_path / "deep" / "er" / "model.onnx")
