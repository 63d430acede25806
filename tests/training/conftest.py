"""A task that a tiny model learns in seconds, models that quantize, and trainings in processes of their own."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch

import calibration
from qdq.models.registry import build, configure
from qdq.recipes.apply import quantize

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from qdq.models.model import Model


@pytest.fixture(autouse=True)
def _one_thread(_reproducible: None) -> None:
    """These models are too small for two threads, which then only wait for each other."""
    torch.set_num_threads(1)


@dataclass(frozen=True)
class ToyTask:
    """Tiny models, and batches whose label is whether the second token comes from the upper half."""

    NO_DROPOUT: ClassVar[Mapping[str, Any]] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}

    def model(self, model_type: str = "bert", task: str = "sequence-classification", **changes: Any) -> Model:
        """Return a float model with the same numbers each time."""
        torch.manual_seed(0)
        fields = {
            "vocab_size": 40,
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "max_position_embeddings": 32,
            "initializer_range": 0.2,
            **changes,
        }
        if task == "sequence-classification":
            fields.setdefault("problem_type", "single_label_classification")
        return build(configure(model_type, **fields), task)

    def quantized_model(self, recipe: str = "linear", **changes: Any) -> Model:
        """Return a model that quantizes, calibrated on the batches."""
        model = self.model(**changes)
        quantize(model, recipe)
        calibration.calibrate(model, [without_labels(batch) for batch in self.batches()])
        return model

    def batches(self, count: int = 8, rows: int = 8) -> list[dict[str, Tensor]]:
        """Return texts with padding, and labels."""
        generator = torch.Generator().manual_seed(7)
        found = []
        for _ in range(count):
            ids = torch.randint(5, 40, (rows, 8), generator=generator)
            mask = torch.ones_like(ids)
            mask[0, 5:] = 0
            labels = (ids[:, 1] >= 22).long()
            found.append({"input_ids": ids * mask, "attention_mask": mask, "labels": labels})
        return found

    def dataset(self, count: int = 8, rows: int = 8) -> ToyDataset:
        """Return the rows of the batches one by one, for a DataLoader."""
        batches = self.batches(count, rows)
        return ToyDataset([{name: t[i] for name, t in batch.items()} for batch in batches for i in range(rows)])

    def accuracy(self, model: nn.Module) -> dict[str, float]:
        """Return the accuracy of a model on the batches."""
        assert not model.training
        with torch.no_grad():
            right = [model(**b).logits.argmax(-1) == b["labels"] for b in self.batches()]
        return {"accuracy": float(torch.cat(right).float().mean())}


class ToyDataset(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Rows of a toy task."""

    def __init__(self, rows: list[dict[str, Tensor]]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self._rows[index]


def without_labels(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


@pytest.fixture(scope="session")
def toy() -> ToyTask:
    return ToyTask()


@dataclass(frozen=True)
class Trained:
    """What a process ends its training with.

    Args:
        weights: Weights of the model.
        best: Weights of the best evaluation.
        history: Metrics of every evaluation.
        log: The log as CSV.
    """

    weights: dict[str, Tensor]
    best: dict[str, Tensor]
    history: list[dict[str, Any]]
    log: str


@dataclass(frozen=True)
class TrainingProcesses:
    """Runs ``train_process.py``, whose options its docstring names."""

    def run(self, folder: Path, *, count: int = 1, code: int = 0, **options: Any) -> None:
        """Train in ``count`` processes (gloo), each of which must end with ``code``."""
        folder.mkdir(exist_ok=True)
        command = [sys.executable, str(Path(__file__).with_name("train_process.py")), str(folder), json.dumps(options)]
        shared = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        if count > 1:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            shared |= {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        processes = []
        for rank in range(count):
            own = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)} if count > 1 else shared
            processes.append(subprocess.Popen(command, env=own, stderr=subprocess.PIPE, text=True))
        said = [process.communicate(timeout=900)[1] for process in processes]
        for process, text in zip(processes, said, strict=True):
            assert process.returncode == code, text

    def result(self, folder: Path, rank: int = 0) -> Trained:
        """Return what process ``rank`` wrote into ``folder``."""
        return Trained(**torch.load(folder / f"result.{rank}.pt", weights_only=True))


@pytest.fixture(scope="session")
def processes() -> TrainingProcesses:
    return TrainingProcesses()
