"""A task that a tiny model learns in seconds, and models that quantize."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
import torch

import calibration
from qdq.models.registry import build, configure
from qdq.recipes.apply import quantize

if TYPE_CHECKING:
    from torch import Tensor

    from qdq.models.model import Model


@pytest.fixture(autouse=True)
def _one_thread(_reproducible: None) -> None:
    """These models are too small for two threads, which then only wait for each other."""
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Kit:
    """Makes models, and batches whose label is whether the second token comes from the upper half."""

    def model(self, model_type: str = "bert", task: str = "sequence-classification", **changes: Any) -> Model:
        """A float model with the same numbers each time."""
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

    def quantized(self, recipe: str = "linear", **changes: Any) -> Model:
        """One that quantizes, calibrated on the batches."""
        model = self.model(**changes)
        quantize(model, recipe)
        calibration.calibrate(model, [{k: v for k, v in b.items() if k != "labels"} for b in self.batches()])
        return model

    def batches(self, count: int = 8, rows: int = 8) -> list[dict[str, Tensor]]:
        """Texts with padding, and labels."""
        generator = torch.Generator().manual_seed(7)
        found = []
        for _ in range(count):
            ids = torch.randint(5, 40, (rows, 8), generator=generator)
            mask = torch.ones_like(ids)
            mask[0, 5:] = 0
            labels = (ids[:, 1] >= 22).long()
            found.append({"input_ids": ids * mask, "attention_mask": mask, "labels": labels})
        return found

    def accuracy(self, model: Any) -> dict[str, float]:
        """Of a model on the batches."""
        assert not model.training
        with torch.no_grad():
            right = [model(**b).logits.argmax(-1) == b["labels"] for b in self.batches()]
        return {"accuracy": float(torch.cat(right).float().mean())}


@pytest.fixture(scope="session")
def kit() -> Kit:
    return Kit()
