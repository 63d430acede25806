"""Weight files: which one is read, weights inside of larger records, and files that cannot be read."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save_file

from qdq.errors import CheckpointError, StorageError
from qdq.models.weight_files import read_tensors, tensor_names

if TYPE_CHECKING:
    from collections.abc import Iterator

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0123456789abcdef' * 4}\nsize 90868376\n"
STATE = {"encoder.weight": torch.arange(6.0).reshape(2, 3), "encoder.bias": torch.ones(2)}


def write_bin(folder: Path, content: Any) -> Path:
    torch.save(content, folder / "pytorch_model.bin")
    return folder


def assert_is_state(found: dict[str, torch.Tensor]) -> None:
    assert found.keys() == STATE.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in STATE.items())


def test_safetensors_goes_before_other_files(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model.safetensors")
    write_bin(tmp_path, {"other": torch.zeros(1)})
    assert_is_state(read_tensors(tmp_path))
    assert sorted(tensor_names(tmp_path)) == sorted(STATE)


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({"state_dict": STATE, "epoch": 3}, "state_dict"),
        ({"model": STATE, "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}, "param_groups": []}}, "model"),
        ({"model_state_dict": STATE, "loss": 0.25, "rng": torch.zeros(8, dtype=torch.uint8)}, "model_state_dict"),
        ({"app": {"net": STATE}, "step": 10}, "app.net"),
    ],
    ids=["lightning", "optimizer", "random state", "two levels"],
)
def test_weights_inside_a_record(
    content: dict[str, Any], place: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = write_bin(tmp_path, content)
    assert sorted(tensor_names(folder)) == sorted(STATE)
    assert not caplog.messages
    assert_is_state(read_tensors(folder))
    assert f'the weights are taken from its part "{place}"; left out: ' in caplog.text


def test_numbers_beside_the_weights_do_no_harm(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert_is_state(read_tensors(write_bin(tmp_path, {**STATE, "epoch": 3})))
    assert not caplog.messages


def test_several_sets_of_weights_are_refused_by_name(tmp_path: Path) -> None:
    folder = write_bin(tmp_path, {"state_dict": STATE, "ema": STATE})
    with pytest.raises(CheckpointError, match=r"holds several sets of tensors: state_dict \(2 tensors\), ema \(2"):
        read_tensors(folder)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({}, "it is empty"),
        ({"epoch": 3, "lr": 0.1}, "it holds epoch, lr"),
        ([torch.ones(1)], "it holds a list"),
        ({"optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}}}, "it holds optimizer"),
    ],
    ids=["nothing", "numbers", "list", "optimizer"],
)
def test_no_weights_at_all(content: Any, what: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=f"not a state dict of tensors; {what}"):
        read_tensors(write_bin(tmp_path, content))


def test_a_pickle_of_code_names_what_it_asks_for(tmp_path: Path) -> None:
    folder = write_bin(tmp_path, {"state_dict": STATE, "args": argparse.Namespace(lr=1)})
    with pytest.raises(CheckpointError, match=r"refused, the pickle holds argparse\.Namespace beside tensors"):
        read_tensors(folder)


def test_torchscript_is_no_state_dict(tmp_path: Path) -> None:
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=r"is a TorchScript program, not weights; save torch\.jit\.load"):
        read_tensors(tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.safetensors.index.json"])
def test_a_pointer_of_git_lfs(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(POINTER)
    for read in (read_tensors, tensor_names):
        with pytest.raises(CheckpointError, match=f"{name}: is a Git LFS pointer.*git lfs pull"):
            read(tmp_path)


@contextmanager
def as_anybody() -> Iterator[None]:
    """Give up the rights of root, whom no permission stops."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_file_without_permission(name: str) -> None:
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are closed to other users
    try:
        folder.chmod(0o755)
        save_file(STATE, folder / name)
        (folder / name).chmod(0)
        for read in (read_tensors, tensor_names):
            with as_anybody(), pytest.raises(StorageError, match=f"cannot read .*{name}: Permission denied"):
                read(folder)
    finally:
        shutil.rmtree(folder)
