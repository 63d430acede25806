"""Killed at any step, in the middle of saving too: what goes on from the state ends with the same weights."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from qdq.errors import CheckpointError, TrainingError
from qdq.training.loop import finetune

WORKER = Path(__file__).with_name("worker.py")
SETTINGS = {"epochs": 3, "lr": 1e-2, "save_steps": 3}
KILLED = -signal.SIGKILL


def train(folder: Path, *, code: int = 0, **options: Any) -> None:
    """Run the worker; it must end with ``code``."""
    command = [sys.executable, str(WORKER), str(folder), json.dumps({"settings": SETTINGS, **options})]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == code, done.stderr


def result(folder: Path) -> Any:
    return torch.load(folder / "result.0.pt", weights_only=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What an uninterrupted training with learned scales ends with; with dropout, a shuffling loader, moving phases."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, **LEARNED)
    return result(folder)


LEARNED: dict[str, Any] = {
    "recipe": "linear",
    "settings": {**SETTINGS, "ranges": "learned", "accumulation": 2, "activations_from": 0.1, "weights_from": 0.3},
}


def same(one: Any, other: Any) -> None:
    assert one["history"] == other["history"]
    assert one["log"] == other["log"]
    assert one["weights"].keys() == other["weights"].keys()
    for name, tensor in one["weights"].items():
        assert torch.equal(tensor, other["weights"][name]), name


@pytest.mark.slow
@pytest.mark.parametrize("moment", [4, 8, "torn 2", "written 3"], ids=str)
def test_killed_and_resumed_is_as_never_killed(moment: int | str, whole: Any, tmp_path: Path) -> None:
    train(tmp_path, code=KILLED, die_at=moment, **LEARNED)
    assert not (tmp_path / "result.0.pt").exists()
    train(tmp_path, resume=True, **LEARNED)
    same(result(tmp_path), whole)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["result.0.pt", "state"], "nothing is left behind"


@pytest.mark.slow
@pytest.mark.parametrize("recipe", [None, "tensorrt"], ids=["float", "tensorrt"])
@pytest.mark.parametrize("ranges", ["fixed", "moving"])
@pytest.mark.parametrize("step", range(1, 24, 4))
def test_killed_at_any_step(recipe: str | None, ranges: str, step: int, tmp_path: Path) -> None:
    options: dict[str, Any] = {"recipe": recipe, "settings": {**SETTINGS, "ranges": ranges, "save_steps": 1}}
    (tmp_path / "whole").mkdir()
    (tmp_path / "killed").mkdir()
    train(tmp_path / "whole", **options)
    train(tmp_path / "killed", code=KILLED, die_at=step, **options)
    train(tmp_path / "killed", resume=True, **options)
    same(result(tmp_path / "killed"), result(tmp_path / "whole"))


def test_what_belongs_to_another_training_is_refused(kit: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"evaluate": kit.accuracy, "state": tmp_path / "state", "epochs": 1}
    finetune(kit.model(), kit.batches(), identity={"model": "a"}, **options)
    with pytest.raises(TrainingError, match="2 problems") as caught:
        finetune(kit.model(), kit.batches(), identity={"model": "b"}, lr=1.0, resume=True, **options)
    assert "model: a there, b here" in str(caught.value)
    assert "lr: 5e-05 there, 1.0 here" in str(caught.value)


def test_a_damaged_state_is_refused(kit: Any, tmp_path: Path) -> None:
    options: dict[str, Any] = {"evaluate": kit.accuracy, "state": tmp_path / "state", "epochs": 1}
    finetune(kit.model(), kit.batches(), **options)
    file = tmp_path / "state" / "state.pt"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"state\.pt: damaged"):
        finetune(kit.model(), kit.batches(), resume=True, **options)


def test_nothing_to_resume_begins_anew(kit: Any, tmp_path: Path) -> None:
    result = finetune(kit.model(), kit.batches(), state=tmp_path / "state", resume=True, epochs=1, save_steps=4)
    assert result.steps == 8
    assert (tmp_path / "state" / "state.pt").is_file()


def test_a_signal_ends_a_training_between_steps(kit: Any, tmp_path: Path) -> None:
    def stop(step: int, *_: object) -> None:
        if step == 5:
            handler = signal.getsignal(signal.SIGTERM)
            assert callable(handler), "nobody waits for the signal"
            handler(signal.SIGTERM, None)  # tests/cli/test_finetune.py sends a real one, to another process

    models = [kit.model(), kit.model(), kit.model()]
    options: dict[str, Any] = {"epochs": 2, "lr": 1e-2}
    before = signal.getsignal(signal.SIGTERM)
    torch.manual_seed(1)
    with pytest.raises(KeyboardInterrupt):
        finetune(models[0], kit.batches(), state=tmp_path / "state", progress=stop, **options)
    assert signal.getsignal(signal.SIGTERM) is before
    finetune(models[1], kit.batches(), state=tmp_path / "state", resume=True, **options)
    torch.manual_seed(1)
    finetune(models[2], kit.batches(), **options)
    for one, other in zip(models[1].parameters(), models[2].parameters(), strict=True):
        assert torch.equal(one, other)
