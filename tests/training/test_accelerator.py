"""Two processes (gloo) that share batches take the steps of one process that has them whole."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from pathlib import Path

    from tests.training.conftest import ToyTask, TrainingProcesses

SETTINGS = {"epochs": 2, "lr": 1e-3, "warmup": 0.0}


def assert_close(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        if not name.endswith("key.bias"):  # it has no gradient but what rounding leaves
            torch.testing.assert_close(tensor, other[name], rtol=1e-3, atol=2e-5, msg=name)


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(toy: ToyTask, processes: TrainingProcesses, tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "recipe": "linear",
        "settings": {**SETTINGS, "ranges": "learned", "accumulation": 2},
        "changes": toy.NO_DROPOUT,
        "shuffles": False,
        "rows": 15,  # the second process has a row less
    }
    processes.run(tmp_path / "one", **options)
    processes.run(tmp_path / "two", count=2, **options)
    alone = processes.result(tmp_path / "one")
    first, second = (processes.result(tmp_path / "two", rank) for rank in (0, 1))
    assert_close(first.weights, second.weights)
    assert_close(first.weights, alone.weights)
    metrics = [row["accuracy"] for trained in (alone, first) for row in trained.history]
    assert metrics[:2] == metrics[2:]


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [None, "linear"], ids=["float", "linear"])
def test_sharded_weights_are_trained_and_saved_whole(
    toy: ToyTask, processes: TrainingProcesses, recipe: str | None, tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "recipe": recipe,
        "settings": {**SETTINGS, "max_grad_norm": 0.1},
        "changes": toy.NO_DROPOUT,
        "shuffles": False,
        "rows": 16,
        "resumable": False,
    }
    if recipe is not None:  # one long step: in the next one, what rounding leaves decides where values are rounded to
        options["settings"] |= {"ranges": "learned", "scale_lr": 0.1, "max_steps": 1}
    processes.run(tmp_path / "one", **options)
    processes.run(tmp_path / "two", count=2, shards=True, **options)
    one, two = (processes.result(tmp_path / name).best for name in ("one", "two"))
    assert_close(two, one)
    for name in one:
        if name.endswith(".scale"):
            torch.testing.assert_close(two[name], one[name], rtol=1e-2, atol=0, msg=name)


@pytest.mark.slow
def test_shared_layers_are_not_sharded(toy: ToyTask, processes: TrainingProcesses, tmp_path: Path) -> None:
    changes = {**toy.NO_DROPOUT, "embedding_size": 8}
    options: dict[str, Any] = {"family": "albert", "settings": SETTINGS, "changes": changes, "resumable": False}
    with pytest.raises(AssertionError, match="the layers of this model share their weights"):
        processes.run(tmp_path / "two", count=2, shards=True, **options)
