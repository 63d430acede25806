"""The options of loading: every command that loads a model has them, and follows them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from safetensors.torch import load_file, save_file

from qdq.cli.loading import opened, opened_beside
from qdq.load_settings import LoadSettings

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import torch

    from tests.cli.conftest import ModelFolders, Refused, Run

COMMANDS = (
    *("calibrate", "export", "verify", "analyze", "evaluate", "finetune", "inspect", "generate", "quickstart"),
    *("realm index", "realm answer"),
)
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0123456789abcdef' * 4}\nsize 90868376\n"


@pytest.fixture
def bare(model: Path, model_folders: ModelFolders, tmp_path: Path) -> Path:
    """The float checkpoint without its pooler."""
    folder = model_folders.copy(model, tmp_path / "bare")
    return rewrite(folder, lambda tensors: {key: one for key, one in tensors.items() if "pooler" not in key})


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
    tensors = {key: value.clone() for key, value in load_file(folder / "model.safetensors").items()}
    save_file(change(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_that_loads_a_model_has_the_options(name: str, run: Run) -> None:
    ended = run(*name.split(), "--help")
    assert all(option in ended.out for option in ("--allow-missing", "--ignore-keys", "--tokenizer"))


def test_a_model_without_a_pooler_goes_the_whole_way(bare: Path, text: Path, run: Run, tmp_path: Path) -> None:
    ended = run("calibrate", "-m", bare, "-o", tmp_path / "q", "--calib-data", text)
    assert (ended.code, "WARNING" in ended.err) == (0, False)
    assert not [key for key in load_file(tmp_path / "q" / "model.safetensors") if "pooler" in key]
    assert not [key for key in load_file(tmp_path / "q" / "quantizers.safetensors") if "pooler" in key]
    for source, folder, target in ((bare, "f", ["--float"]), (tmp_path / "q", "e", ["--target", "onnxruntime"])):
        ended = run("export", "-m", source, "-o", tmp_path / folder, *target, "--json")
        assert ended.document["outputs"] == ["last_hidden_state"]
        assert run("verify", "-m", source, tmp_path / folder).code == 0
    assert run("inspect", bare).code == 0
    planned = run("inspect", bare, "-r", "linear", "--json").document
    assert not [row for row in planned["slots"] if "pooler" in row["slot"]]
    assert run("analyze", tmp_path / "q", "--data", text, "--max-batches", 1).code == 0


def test_the_same_seed_gives_the_same_bytes(bare: Path, text: Path, run: Run, tmp_path: Path) -> None:
    drawn = ("--allow-missing", "pooler", "--seed", 3)
    for name in ("a", "b"):
        ended = run("calibrate", "-m", bare, "-o", tmp_path / name, "--calib-data", text, *drawn)
        assert "pooler.dense.weight, pooler.dense.bias drawn at random" in " ".join(ended.err.split())
    assert (tmp_path / "a" / "model.safetensors").read_bytes() == (tmp_path / "b" / "model.safetensors").read_bytes()
    assert run("export", "-m", bare, "-o", tmp_path / "f", "--float", *drawn).code == 0
    assert run("verify", "-m", bare, tmp_path / "f", *drawn).code == 0
    assert run("verify", "-m", bare, tmp_path / "f").code == 1  # without the option there is no pooler to compare with


def test_left_over_tensors(bare: Path, text: Path, run: Run, refused: Refused, tmp_path: Path) -> None:
    rewrite(bare, lambda tensors: tensors | {"fit_dense.weight": tensors["embeddings.LayerNorm.weight"] + 1})
    command = ("calibrate", "-m", bare, "-o", tmp_path / "q", "--calib-data", text)
    assert "(--ignore-keys 'fit_dense.*' leaves them out)" in refused(*command)
    ended = run(*command, "--ignore-keys", "fit_dense.*")
    assert (ended.code, "WARNING" in ended.err) == (0, False)
    assert "fit_dense.weight" not in load_file(tmp_path / "q" / "model.safetensors")


def test_a_tokenizer_from_elsewhere(
    model: Path, model_folders: ModelFolders, text: Path, run: Run, refused: Refused, tmp_path: Path
) -> None:
    folder = model_folders.copy(model, tmp_path / "checkpoint-500")
    (folder / "vocab.txt").unlink()
    command = ("calibrate", "-m", folder, "-o", tmp_path / "q", "--calib-data", text)
    assert "or name its directory with --tokenizer DIR" in refused(*command)
    assert "nowhere: no such directory" in refused(*command, "--tokenizer", tmp_path / "nowhere")
    assert run(*command, "--tokenizer", model).code == 0
    assert (tmp_path / "q" / "vocab.txt").read_bytes() == (model / "vocab.txt").read_bytes()


def test_a_module_that_cannot_be_drawn(model: Path, refused: Refused) -> None:
    assert "must be head or pooler" in refused("inspect", model, "--allow-missing", "encoder")


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "vocab.txt", "modules.json"])
def test_pointers_of_git_lfs(
    name: str, model: Path, model_folders: ModelFolders, text: Path, refused: Refused, tmp_path: Path
) -> None:
    folder = model_folders.copy(model, tmp_path / "clone")
    (folder / name).write_text(POINTER)
    message = refused("calibrate", "-m", folder, "-o", tmp_path / "q", "--calib-data", text)
    assert f"{name}: is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`" in message


@pytest.mark.parametrize("command", ["inspect", "benchmark"])
def test_an_onnx_file_that_is_a_pointer(command: str, refused: Refused, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_text(POINTER)
    assert "model.onnx: is a Git LFS pointer" in refused(command, tmp_path / "model.onnx")


def test_names_inside_of_a_wrapper(
    model: Path, model_folders: ModelFolders, text: Path, run: Run, tmp_path: Path
) -> None:
    folder = model_folders.copy(model, tmp_path / "wrapped")
    rewrite(folder, lambda tensors: {f"module.{key}": one for key, one in tensors.items()})
    ended = run("calibrate", "-m", folder, "-o", tmp_path / "q", "--calib-data", text)
    assert ended.code == 0
    assert "the names of the tensors are read without 'module.', which a wrapper of the model adds" in ended.err
    assert ended.err.count("module.") == 1
    assert load_file(tmp_path / "q" / "model.safetensors").keys() == load_file(model / "model.safetensors").keys()


def test_a_second_model_keeps_its_own_tokenizer(model: Path, model_folders: ModelFolders, tmp_path: Path) -> None:
    loading = LoadSettings(tokenizer=str(model))
    other = model_folders.copy(model, tmp_path / "other")
    assert opened(other, loading, seed=1).tokenizer_folder == model
    assert opened_beside(other, loading, seed=1).tokenizer_folder == other
    (other / "vocab.txt").unlink()
    assert opened_beside(other, loading, seed=1).tokenizer_folder == model
    assert opened_beside(other, loading, seed=1).loading.seed == 1
