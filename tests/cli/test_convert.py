"""qdq convert: another package's checkpoint becomes a directory of ours, and every tensor is told."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors import safe_open

from qdq.models.huggingface import load_model

if TYPE_CHECKING:
    from tests.cli.conftest import Refused, Run


INTEROP = Path(__file__).resolve().parents[1] / "interop"


@pytest.fixture
def megatron(tmp_path: Path) -> Path:
    """A file as Megatron-LM saves it, with flat names, which it reads as well."""
    with safe_open(INTEROP / "megatron" / "version-3.safetensors", framework="pt") as file:
        names = [name for name in file.keys() if name.startswith("megatron:")]  # noqa: SIM118
        model = {name.removeprefix("megatron:"): file.get_tensor(name) for name in names}
        arguments = json.loads(file.metadata()["args"])
    document = {"model": model, "args": arguments, "checkpoint_version": 3.0, "iteration": 9}
    folder = tmp_path / "source"
    folder.mkdir()
    torch.save(document, folder / "model_optim_rng.pt")
    shutil.copy(INTEROP.parent / "retrieval" / "golden" / "vocab.txt", folder)
    return folder / "model_optim_rng.pt"


def test_every_tensor_is_told(run: Run, megatron: Path, tmp_path: Path) -> None:
    ended = run("convert", "--from", "megatron-lm", megatron, "-o", tmp_path / "ours", "--json")
    assert ended.code == 0, ended.err
    document = ended.document
    names = {entry["name"]: entry for entry in document["mapped"]}
    assert len(names) == 38
    fused = names["language_model.encoder.layers.0.self_attention.query_key_value.weight"]
    assert fused["targets"] == [
        f"bert.encoder.layer.0.attention.self.{part}.weight" for part in ("query", "key", "value")
    ]
    assert fused["how"] == "split, rows of checkpoint_version 3"
    reasons = {entry["name"]: entry["reason"] for entry in document["skipped"]}
    assert reasons["iteration"] == "training state, not a weight"
    assert (tmp_path / "ours" / "vocab.txt").is_file()
    assert load_model(tmp_path / "ours").config.model_type == "megatron-bert"


def test_people_get_a_line_and_with_v_a_table(run: Run, megatron: Path, tmp_path: Path) -> None:
    shown = run("convert", "--from", "megatron-lm", megatron, "-o", tmp_path / "ours")
    assert shown.out.startswith(f"{tmp_path / 'ours'}: 38 tensors mapped, 3 left out")
    told = run("convert", "--from", "megatron-lm", megatron, "-o", tmp_path / "ours", "-v")
    assert "bert.encoder.layer.1.attention.self.key.bias" in told.out


def test_fields_can_be_set(run: Run, megatron: Path, tmp_path: Path) -> None:
    options = ("--set", "layer_norm_eps=1e-5", "--set", "hidden_act=gelu_new", "--task", "masked-lm")
    assert run("convert", "--from", "megatron-lm", megatron, "-o", tmp_path / "ours", *options).code == 0
    model = load_model(tmp_path / "ours")
    assert (model.config.layer_norm_eps, model.config.hidden_act, model.task) == (1e-5, "gelu_new", "masked-lm")


def test_what_is_wrong_is_told(refused: Refused, megatron: Path, tmp_path: Path) -> None:
    output = ("-o", tmp_path / "ours")
    assert "must be one of megatron-lm, tensorflow" in refused("convert", megatron, *output, "--from", "jax")
    assert "no such file" in refused("convert", tmp_path / "none.pt", *output, "--from", "megatron-lm")
    assert "write NAME=VALUE" in refused("convert", megatron, *output, "--from", "megatron-lm", "--set", "eps")
    message = refused("convert", megatron, *output, "--from", "megatron-lm", "--config", megatron)
    assert "TensorFlow" in message


@pytest.mark.skipif(importlib.util.find_spec("tensorflow") is not None, reason="TensorFlow is installed here")
def test_tensorflow_is_asked_for_with_its_pip_command(refused: Refused, tmp_path: Path) -> None:
    source = INTEROP / "tensorflow" / "bert"
    message = refused("convert", source, "-o", tmp_path / "ours", "--from", "tensorflow", code=3)
    assert "pip install 'qdq[tensorflow]'" in message
