"""Outputs take the modules of their source along: sentence-transformers loads them, and computes the same."""

from __future__ import annotations

import json
import shutil
import stat
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import Pooling

import qdq
from exporters.runners import OnnxRuntimeRunner
from qdq.checkpoint import copy_tokenizer
from qdq.errors import CheckpointError, ConfigError
from tests.sentence.conftest import TEXTS, WIDTH, in_old_layout

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def encode(folder: Path) -> np.ndarray:
    vectors: np.ndarray = SentenceTransformer(str(folder), device="cpu").encode(list(TEXTS))
    return vectors


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def folder(save_sentence_model: Callable[..., Path]) -> Path:
    """A directory with a dense layer, a prompt and a longest text."""
    torch.manual_seed(3)
    modules = (Pooling(WIDTH, "cls", include_prompt=False), Dense(WIDTH, 6), Normalize())
    return save_sentence_model(*modules, length=9, prompts={"a": "lake: "}, default_prompt_name="a", truncate_dim=5)


@pytest.mark.parametrize("is_old", [False, True], ids=["current", "old"])
def test_a_quantized_checkpoint_is_the_same_sentence_transformer(folder: Path, is_old: bool, tmp_path: Path) -> None:
    expected = encode(folder)
    folder = in_old_layout(folder) if is_old else folder
    qdq.calibrate_checkpoint(folder, tmp_path / "out", list(TEXTS) * 8, recipe="linear")
    np.testing.assert_allclose(encode(tmp_path / "out"), expected, atol=1e-6)
    assert json.loads((tmp_path / "out" / "modules.json").read_text())[0]["path"] == ""
    assert not (tmp_path / "out" / "0_Transformer").exists()


def test_an_export_has_all_that_follows_the_transformer(folder: Path, tmp_path: Path) -> None:
    """What ``SentenceTransformer(export, backend="onnx")`` does, with the file run by ONNX Runtime."""
    expected = encode(folder)
    in_old_layout(folder)
    qdq.calibrate_checkpoint(folder, tmp_path / "quantized", list(TEXTS) * 8, recipe="linear")
    for target, closeness in ((None, 1e-4), ("onnxruntime", 0.05)):
        out = tmp_path / f"{target}"
        qdq.export(folder if target is None else tmp_path / "quantized", out, target=target)
        given = SentenceTransformer(str(tmp_path / "quantized"), device="cpu")
        features = given.preprocess(list(TEXTS), prompt="lake: ")
        inputs = {name: features[name].numpy() for name in ("input_ids", "attention_mask", "token_type_ids")}
        hidden = OnnxRuntimeRunner(out / "model.onnx")(inputs)["last_hidden_state"]
        features |= {"token_embeddings": torch.from_numpy(hidden)}
        for path, kind in (("1_Pooling", Pooling), ("2_Dense", Dense), ("3_Normalize", Normalize)):
            features = kind.load(str(out), subfolder=path)(features)
        found = features["sentence_embedding"].detach().numpy()[:, :5]
        assert np.einsum("tw,tw->t", found, expected).min() > np.square(expected).sum(axis=1).min() - closeness


def test_training_writes_the_same_modules(folder: Path, tmp_path: Path) -> None:
    rows = [{"sentence1": TEXTS[0], "sentence2": text, "score": number} for number, text in enumerate(TEXTS)]
    settings = qdq.TrainingSettings(epochs=1, lr=1e-9)
    task = qdq.TaskSettings(task="sts")
    qdq.finetune_checkpoint(in_old_layout(folder), tmp_path / "out", rows, task=task, settings=settings, say=str)
    np.testing.assert_allclose(encode(tmp_path / "out"), encode(folder), atol=1e-4)


def test_directories_that_modules_json_names_are_copied_however_they_are_called(
    save_sentence_model: Callable[..., Path], tmp_path: Path
) -> None:
    source = save_sentence_model(Pooling(WIDTH, "max"))
    entries = json.loads((source / "modules.json").read_text())
    entries[1]["path"] = "heads/first/pool"
    (source / "modules.json").write_text(json.dumps(entries))
    (source / "heads" / "first").mkdir(parents=True)
    (source / "1_Pooling").rename(source / "heads" / "first" / "pool")
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text("{}")  # left over: nothing names it
    (tmp_path / "out").mkdir()
    copy_tokenizer(source, tmp_path / "out")
    assert {name for name in files_of(tmp_path / "out") if "/" in name} == {"heads/first/pool/config.json"}


def test_copies_are_plain_files_with_usual_permissions(folder: Path, tmp_path: Path) -> None:
    """The source may be a store whose files are links and cannot be written."""
    (tmp_path / "blobs").mkdir()
    for number, path in enumerate(sorted(folder.rglob("*"))):
        if path.is_file():
            blob = path.rename(tmp_path / "blobs" / str(number))
            blob.chmod(0o444)
            path.symlink_to(blob)
    for path in [path for path in folder.rglob("*") if path.is_dir()]:
        path.chmod(0o555)
    (tmp_path / "out").mkdir()
    (tmp_path / "usual").mkdir()
    (tmp_path / "usual" / "file").touch()
    copy_tokenizer(folder, tmp_path / "out")
    for path in (tmp_path / "out").rglob("*"):
        assert not path.is_symlink()
        like = tmp_path / "usual" / ("file" if path.is_file() else "")
        assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE(like.stat().st_mode), path
    assert "2_Dense/model.safetensors" in files_of(tmp_path / "out")
    for path in [path for path in folder.rglob("*") if path.is_dir()]:
        path.chmod(0o755)


def test_nothing_outside_the_directory_is_copied(folder: Path, tmp_path: Path) -> None:
    entries = json.loads((folder / "modules.json").read_text())
    entries[1]["path"] = "../secret"
    (folder / "modules.json").write_text(json.dumps(entries))
    (tmp_path / "secret").mkdir()
    with pytest.raises(ConfigError, match=r"the path '\.\./secret' leaves the directory"):
        qdq.calibrate_checkpoint(folder, tmp_path / "out", list(TEXTS), recipe="linear")
    assert not (tmp_path / "out").exists()


def test_a_pointer_in_a_module_is_not_copied(folder: Path, tmp_path: Path) -> None:
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"
    (folder / "2_Dense" / "model.safetensors").write_text(pointer)
    with pytest.raises(CheckpointError, match=r"2_Dense/model\.safetensors: is a Git LFS pointer"):
        qdq.calibrate_checkpoint(folder, tmp_path / "out", list(TEXTS) * 8, recipe="linear")
    assert not (tmp_path / "out").exists()


def test_a_directory_that_is_missing_is_warned_of(
    folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shutil.rmtree(folder / "2_Dense")
    shutil.rmtree(folder / "3_Normalize")  # git keeps no empty directories
    (tmp_path / "out").mkdir()
    copy_tokenizer(folder, tmp_path / "out")
    (record,) = caplog.records
    assert "modules.json names 2_Dense (Dense), but there is no such directory" in record.getMessage()
