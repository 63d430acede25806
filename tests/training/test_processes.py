"""Two processes (gloo) that share batches take the steps of one process that has them whole."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

WORKER = Path(__file__).with_name("worker.py")
STILL = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
SETTINGS = {"epochs": 2, "lr": 1e-3, "warmup": 0.0}


def together(folder: Path, count: int, **options: Any) -> None:
    """Run the worker in ``count`` processes."""
    folder.mkdir(exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(WORKER), str(folder), json.dumps(options)]
    shared = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    if count > 1:
        shared |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    workers = []
    for rank in range(count):
        own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else shared
        workers.append(subprocess.Popen(command, env=own, stderr=subprocess.PIPE, text=True))
    said = [worker.communicate(timeout=900)[1] for worker in workers]
    for worker, text in zip(workers, said, strict=True):
        assert worker.returncode == 0, text


def weights(folder: Path, rank: int = 0, which: str = "weights") -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = torch.load(folder / f"result.{rank}.pt", weights_only=True)[which]
    return found


def history(folder: Path) -> Any:
    return torch.load(folder / "result.0.pt", weights_only=True)["history"]


def close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        if not name.endswith("key.bias"):  # it has no gradient but what rounding leaves
            torch.testing.assert_close(tensor, other[name], rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "recipe": "linear",
        "settings": {**SETTINGS, "ranges": "learned", "accumulation": 2},
        "changes": STILL,
        "shuffles": False,
        "rows": 15,  # the second process has a row less
    }
    together(tmp_path / "one", 1, **options)
    together(tmp_path / "two", 2, **options)
    close(weights(tmp_path / "two", 0), weights(tmp_path / "two", 1))
    close(weights(tmp_path / "two"), weights(tmp_path / "one"))
    metrics = [row["accuracy"] for folder in ("one", "two") for row in history(tmp_path / folder)]
    assert metrics[:2] == metrics[2:]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [None, "linear"], ids=["float", "linear"])
def test_sharded_weights_are_trained_and_saved_whole(recipe: str | None, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "recipe": recipe,
        "settings": {**SETTINGS, "max_grad_norm": 0.1},
        "changes": STILL,
        "shuffles": False,
        "rows": 16,
        "keeps": False,
    }
    if recipe is not None:  # one long step: in the next one, what rounding leaves decides where values are rounded to
        options["settings"] |= {"ranges": "learned", "scale_lr": 0.1, "max_steps": 1}
    together(tmp_path / "one", 1, **options)
    together(tmp_path / "two", 2, shards=True, **options)
    one, two = (weights(tmp_path / name, which="best") for name in ("one", "two"))
    close(two, one)
    for name in one:
        if name.endswith(".scale"):
            torch.testing.assert_close(two[name], one[name], rtol=1e-2, atol=0, msg=name)


@pytest.mark.slow
def test_shared_layers_are_not_sharded(tmp_path: Path) -> None:
    changes = {**STILL, "embedding_size": 8}
    with pytest.raises(AssertionError, match="the layers of this model share their weights"):
        together(tmp_path / "two", 2, shards=True, family="albert", settings=SETTINGS, changes=changes, keeps=False)
