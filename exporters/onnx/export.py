"""Write an ONNX model for a target."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from exporters.onnx.targets import Target, target_named
from exporters.onnx.trace import trace
from exporters.signature import Signature, signature_of
from qdq.errors import ExportError, describe_faults
from qdq.prepare import apply_recipe, named_slots
from qdq.quantizer import Mode, set_mode
from qdq.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

__all__ = ["DEFAULT_OPSET", "Exported", "export_model"]

DEFAULT_OPSET = 21

_EXTERNAL_ABOVE = 1_900_000_000  # protobuf holds less than 2 GiB


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        target: name of the target, ``float`` for a float model.
        recipe: name of the recipe in force, None for a float model.
        opset: of the standard operators.
        signature: names of inputs and outputs.
        notes: what a reader should know, a sentence each.
    """

    target: str
    recipe: str | None
    opset: int
    signature: Signature
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``export.json``."""
        return {
            "target": self.target,
            "recipe": self.recipe,
            "opset": self.opset,
            "inputs": list(self.signature.inputs),
            "outputs": list(self.signature.outputs),
            "notes": list(self.notes),
        }


def export_model(
    model: nn.Module,
    path: Path,
    *,
    target: str | Target | None,
    recipe: Recipe | str | None = None,
    opset: int = DEFAULT_OPSET,
) -> Exported:
    """Export ``model`` to the file ``path``.

    A calibrated model is exported with the specs it has, when the target can run them. When it cannot (uint8
    activations on TensorRT), or when ``recipe`` is given, the model's slots get that recipe, or the target's own
    preset, with the ranges that calibration found: ``model`` then computes what the file computes.

    Args:
        model: float, or wrapped and calibrated.
        path: of the file to write; weights above 2 GB go to ``<path>.data`` beside it.
        target: ``onnxruntime``, ``openvino``, ``tensorrt``; None exports a float model as it is.
        recipe: a recipe or the name of a preset to change to first.
        opset: of the standard operators, 18 to 25.

    Raises:
        ExportError: for a target or opset that does not exist, a model that is not quantized, a recipe that the target
            cannot run (every slot is named).
        CalibrationError: for slots that are not calibrated; all are named.
    """
    chosen = target_named(target) if isinstance(target, str) else target
    slots = list(named_slots(model))
    notes: list[str] = []
    name = None
    if chosen is not None:
        if not slots:
            raise ExportError(f"the model is not quantized: calibrate it first, or export it in float without target")
        if recipe is not None:
            recipe = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
        elif chosen.faults({slot: quantizer.spec for slot, quantizer in slots}):
            recipe = load_recipe(chosen.recipe)
            notes.append(
                f"The checkpoint's recipe cannot run on {chosen.name}; its ranges were used with the preset {recipe.name!r}."
            )
        if recipe is not None:
            apply_recipe(model, recipe)
            name = recipe.name
        faults = chosen.faults({slot: quantizer.spec for slot, quantizer in named_slots(model)})
        if faults:
            raise ExportError(describe_faults(f"target {chosen.name} cannot run this recipe", faults))
        set_mode(model, Mode.QUANTIZE)
    elif slots:
        set_mode(model, Mode.OFF)
    signature = signature_of(model)
    graph = trace(model, signature, opset=opset)
    passes = [] if chosen is None else chosen.passes()
    ir.passes.Sequential(*passes)(graph) if passes else None
    graph.producer_name = "qdq"
    _write(graph, path)
    return Exported("float" if chosen is None else chosen.name, name, opset, signature, tuple(notes))


def _write(graph: ir.Model, path: Path) -> None:
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)
    if size > _EXTERNAL_ABOVE:
        ir.save(graph, path, external_data=f"{path.name}.data")
    else:
        ir.save(graph, path)
