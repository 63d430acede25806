"""Tiny models, quantized and exported. Each combination of target and recipe is exported once for all tests."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import torch
from torch import Tensor, nn

from calibration import calibrate
from exporters.export_model import wrap_for_export
from exporters.io_signature import example_inputs
from exporters.onnx.export import ExportResult, export_onnx
from qdq.models.registry import build, configure
from qdq.recipes.apply import quantize
from qdq.recipes.recipe import Recipe

if TYPE_CHECKING:
    from pathlib import Path

    from exporters.interface import ExportInterface
    from qdq.models.model import Model

TINY: dict[str, Any] = {
    "vocab_size": 83,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "initializer_range": 0.3,
}
SHAPES = ((2, 8, 2), (3, 17, 4), (1, 30, 0))  # batch, longest, padding


class TinyModels:
    """Make tiny models and their exported files.

    Args:
        folder: Directory for the files.
    """

    LINEARS = (
        *(f"attention.{name}" for name in ("query", "key", "value", "output")),
        "feed_forward.up",
        "feed_forward.down",
    )
    """Names of the linear layers of each encoder layer."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._kept: dict[tuple[str | None, str | None], tuple[Model, Path, ExportResult]] = {}

    def model(self, model_type: str = "bert", task: str | None = None, **changes: Any) -> Model:
        """Make a model in which no parameter is 0 or 1, always with the same weights."""
        torch.manual_seed(0)
        model = build(configure(model_type, **{**TINY, **changes}), task).eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * (0.1 if "norm" in name else 0.3))
        return model

    def batches(self, model: nn.Module, interface: ExportInterface | None = None) -> list[dict[str, Tensor]]:
        """Make batches of three shapes, two with padding."""
        inputs = wrap_for_export(model, interface).signature.inputs
        return [
            example_inputs(inputs, batch_size=b, seq_len=s, vocab_size=TINY["vocab_size"], padding=p, seed=s)
            for b, s, p in SHAPES
        ]

    def calibrated(
        self, recipe: Recipe | str, *args: Any, interface: ExportInterface | None = None, **changes: Any
    ) -> Model:
        """Make a model that is quantized and calibrated; the batches of the calibration have no cache."""
        model = self.model(*args, **changes)
        quantize(model, recipe)
        calibrate(model, self.batches(model, replace(interface, cache=None) if interface else None))
        return model

    def exported(self, target: str | None, recipe: str | None = None) -> tuple[Model, Path, ExportResult]:
        """Export a model with the recipe of the target, or another one; return the model, the file and the result."""
        key = (target, recipe)
        if key not in self._kept:
            path = self._folder / f"{target}-{recipe}.onnx"
            source = recipe or target
            model = self.model() if source is None else self.calibrated(source)
            self._kept[key] = (model, path, export_onnx(model, path, target=target))
        return self._kept[key]


@pytest.fixture(scope="session")
def tiny_models(tmp_path_factory: pytest.TempPathFactory) -> TinyModels:
    torch.set_num_threads(2)
    return TinyModels(tmp_path_factory.mktemp("exports"))


class MakeRecipe(Protocol):
    """Make a recipe for the linear layers of the encoder, and for other kinds of modules by name."""

    def __call__(
        self, activation: dict[str, Any] | None, weight: dict[str, Any] | None = None, **other_kinds: dict[str, Any]
    ) -> Recipe:
        """Make a recipe from specs."""


def _recipe(
    activation: dict[str, Any] | None, weight: dict[str, Any] | None = None, **other_kinds: dict[str, Any]
) -> Recipe:
    specs = [("linear", "input", activation), ("linear", "weight", weight)]
    specs += [(kind, "*", spec) for kind, spec in other_kinds.items()]
    return Recipe.from_dict(
        {
            "name": "test",
            "rules": [
                {"module": "*" if kind == "embedding" else "encoder.*", "kind": kind, "slot": slot, "spec": spec}
                for kind, slot, spec in specs
                if spec is not None
            ],
        }
    )


@pytest.fixture(scope="session")
def make_recipe() -> MakeRecipe:
    return _recipe
