"""Killed at any step, in the middle of saving too: what goes on from the resume file ends with the same weights."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING, Any

import pytest
import torch

from qdq.errors import CheckpointError, TrainingError
from qdq.training.loop import finetune

if TYPE_CHECKING:
    from pathlib import Path

    from tests.training.conftest import ToyTask, Trained, TrainingProcesses

SETTINGS = {"epochs": 3, "lr": 1e-2, "save_steps": 3}
LEARNED: dict[str, Any] = {
    "recipe": "linear",
    "settings": {**SETTINGS, "ranges": "learned", "accumulation": 2, "activations_from": 0.1, "weights_from": 0.3},
}
KILLED = -signal.SIGKILL


@pytest.fixture(scope="module")
def whole(processes: TrainingProcesses, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """What an uninterrupted training with learned scales ends with; with dropout, a shuffling loader, moving phases."""
    folder = tmp_path_factory.mktemp("whole")
    processes.run(folder, **LEARNED)
    return processes.result(folder)


def assert_same(one: Trained, other: Trained) -> None:
    assert one.history == other.history
    assert one.log == other.log
    assert one.weights.keys() == other.weights.keys()
    for name, tensor in one.weights.items():
        assert torch.equal(tensor, other.weights[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("moment", [4, 8, "torn 2", "written 3"], ids=str)
def test_killed_and_resumed_is_as_never_killed(
    processes: TrainingProcesses, moment: int | str, whole: Trained, tmp_path: Path
) -> None:
    processes.run(tmp_path, code=KILLED, die_at=moment, **LEARNED)
    assert not (tmp_path / "result.0.pt").exists()
    processes.run(tmp_path, resume=True, **LEARNED)
    assert_same(processes.result(tmp_path), whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.0.pt", "resume"], "nothing is left behind"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [None, "tensorrt"], ids=["float", "tensorrt"])
@pytest.mark.parametrize("ranges", ["fixed", "moving"])
@pytest.mark.parametrize("step", range(1, 24, 4))
def test_killed_at_any_step(
    processes: TrainingProcesses, recipe: str | None, ranges: str, step: int, tmp_path: Path
) -> None:
    options: dict[str, Any] = {"recipe": recipe, "settings": {**SETTINGS, "ranges": ranges, "save_steps": 1}}
    processes.run(tmp_path / "whole", **options)
    processes.run(tmp_path / "killed", code=KILLED, die_at=step, **options)
    processes.run(tmp_path / "killed", resume=True, **options)
    assert_same(processes.result(tmp_path / "killed"), processes.result(tmp_path / "whole"))


def test_what_belongs_to_another_training_is_refused(toy: ToyTask, tmp_path: Path) -> None:
    options: dict[str, Any] = {"evaluate": toy.accuracy, "resume_folder": tmp_path / "resume", "epochs": 1}
    finetune(toy.model(), toy.batches(), identity={"model": "a"}, **options)
    with pytest.raises(TrainingError, match="2 problems") as caught:
        finetune(toy.model(), toy.batches(), identity={"model": "b"}, lr=1.0, resume=True, **options)
    assert "model: a there, b here" in str(caught.value)
    assert "lr: 5e-05 there, 1.0 here" in str(caught.value)


def test_a_damaged_file_is_refused(toy: ToyTask, tmp_path: Path) -> None:
    options: dict[str, Any] = {"evaluate": toy.accuracy, "resume_folder": tmp_path / "resume", "epochs": 1}
    finetune(toy.model(), toy.batches(), **options)
    file = tmp_path / "resume" / "state.pt"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"state\.pt: damaged"):
        finetune(toy.model(), toy.batches(), resume=True, **options)


def test_nothing_to_resume_begins_anew(toy: ToyTask, tmp_path: Path) -> None:
    result = finetune(
        toy.model(), toy.batches(), resume_folder=tmp_path / "resume", resume=True, epochs=1, save_steps=4
    )
    assert result.steps == 8
    assert (tmp_path / "resume" / "state.pt").is_file()


def test_a_signal_ends_a_training_between_steps(toy: ToyTask, tmp_path: Path) -> None:
    def stop(step: int, *_: object) -> None:
        if step == 5:
            handler = signal.getsignal(signal.SIGTERM)
            assert callable(handler), "nobody waits for the signal"
            handler(signal.SIGTERM, None)  # tests/cli/test_finetune.py sends a real one, to another process

    models = [toy.model(), toy.model(), toy.model()]
    options: dict[str, Any] = {"epochs": 2, "lr": 1e-2}
    before = signal.getsignal(signal.SIGTERM)
    torch.manual_seed(1)
    with pytest.raises(KeyboardInterrupt):
        finetune(models[0], toy.batches(), resume_folder=tmp_path / "resume", progress=stop, **options)
    assert signal.getsignal(signal.SIGTERM) is before
    finetune(models[1], toy.batches(), resume_folder=tmp_path / "resume", resume=True, **options)
    torch.manual_seed(1)
    finetune(models[2], toy.batches(), **options)
    for one, other in zip(models[1].parameters(), models[2].parameters(), strict=True):
        assert torch.equal(one, other)
