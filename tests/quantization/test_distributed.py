"""Two processes that share a batch end up with the gradients of one process that has it whole."""

from __future__ import annotations

import copy
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from qdq.quantization.spec import PerAxis, PerGroup, PerToken, QuantSpec

if TYPE_CHECKING:
    from torch import Tensor

    from qdq.models.model import Model
    from tests.quantization.conftest import QuantizedModels

WORLD = 2
WORKER = Path(__file__).with_name("ddp_worker.py")
KINDS = {
    "static": (QuantSpec(), QuantSpec(granularity=PerAxis(0))),
    "grouped": (QuantSpec(signed=False, symmetric=False), QuantSpec(bits=4, granularity=PerGroup(7))),
    "token": (QuantSpec(dynamic=True, granularity=PerToken()), QuantSpec(granularity=PerAxis(0))),
    "learned": (QuantSpec(learned_scale=True), QuantSpec(learned_scale=True, granularity=PerAxis(0))),
}


def batch() -> dict[str, Tensor]:
    """Four texts, two for each process; every text has a label, so that the means of both halves weigh the same."""
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(4, 83, (4, 10), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 1, 0])}


def trained_together(models: dict[str, Model], folder: Path, device: str) -> dict[str, list[Any]]:
    """Gradients and states after one step, for every kind and process."""
    for kind, model in models.items():
        torch.save((model, batch()), folder / f"{kind}.pt")
    workers = [
        subprocess.Popen(
            [sys.executable, str(WORKER), str(rank), str(WORLD), str(folder), device, *models],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(WORLD)
    ]
    for worker in workers:
        _, errors = worker.communicate(timeout=240)
        assert worker.returncode == 0, errors
    return {
        kind: [torch.load(folder / f"{kind}.{rank}.pt", weights_only=True) for rank in range(WORLD)] for kind in models
    }


def test_gradients_equal_those_of_one_process(
    device: torch.device, tmp_path: Path, quantized_models: QuantizedModels
) -> None:
    if device.type == "cuda" and torch.cuda.device_count() < WORLD:
        pytest.skip(f"needs {WORLD} accelerators")
    models = {
        name: quantized_models.specified(
            *kind, "bert", "sequence-classification", problem_type="single_label_classification"
        )
        for name, kind in KINDS.items()
    }
    found = trained_together(models, tmp_path, device.type)
    for kind, results in found.items():
        model = copy.deepcopy(models[kind]).train()
        want = quantized_models.gradients(model, batch())
        largest = max(float(gradient.abs().max()) for gradient in want.values())
        for gradients, _ in results:
            assert set(gradients) == set(want), kind
            for name, gradient in want.items():
                assert float((gradients[name] - gradient).abs().max()) <= 1e-5 * largest, f"{kind}: {name}"
        first, second = (state for _, state in results)
        assert all(torch.equal(first[name], second[name]) for name in first), "both took the same step"
        scales = [name for name in want if name.endswith("_quantizer.scale")]
        assert bool(scales) is (kind == "learned")
        before = models[kind].state_dict()
        assert all(not torch.equal(first[name], before[name]) for name in scales)
