"""Write an ONNX model for a target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from exporters.onnx.targets import Target, target_named, tidy
from exporters.onnx.trace import OPSETS, trace
from exporters.onnx.translation import BLOCKS_SINCE
from exporters.signature import Signature, signature_of
from qdq.errors import ExportError, describe_faults
from qdq.plan import needing_data
from qdq.prepare import apply_specs, named_slots, unshared_slots
from qdq.quantizer import Mode, quantizers, set_mode
from qdq.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from qdq.recipe import Slot
    from qdq.spec import QuantSpec

__all__ = ["DEFAULT_OPSET", "Exported", "check_options", "export_model"]

DEFAULT_OPSET = 21

_EXTERNAL_ABOVE = 1_900_000_000  # protobuf holds less than 2 GiB


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        target: name of the target, ``float`` for a float model.
        recipe: the recipe in force when it is not the checkpoint's own.
        opset: of the standard operators.
        signature: names of inputs and outputs.
        notes: what a reader should know, a sentence each.
    """

    target: str
    recipe: Recipe | None
    opset: int
    signature: Signature
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``export.json``."""
        return {
            "target": self.target,
            "recipe": None if self.recipe is None else self.recipe.to_dict(),
            "opset": self.opset,
            "inputs": list(self.signature.inputs),
            "outputs": list(self.signature.outputs),
            "notes": list(self.notes),
        }


def check_options(target: str | None, opset: int) -> None:
    """Refuse what cannot be, before anything is read or written.

    Raises:
        ExportError: for a target or opset that does not exist.
    """
    if target is not None:
        target_named(target)
    if opset not in OPSETS:
        raise ExportError(f"opset {opset} is not supported: it must be from {OPSETS.start} to {OPSETS.stop - 1}")


def export_model(
    model: nn.Module,
    path: Path,
    *,
    target: str | None,
    recipe: Recipe | str | None = None,
    opset: int = DEFAULT_OPSET,
) -> Exported:
    """Export ``model`` to the file ``path``.

    A calibrated model is exported with the specs it has, when the target can run them. When it cannot (uint8
    activations on TensorRT), or when ``recipe`` is given, the model's slots get that recipe, or the target's own
    preset, with the ranges that calibration found: ``model`` then computes what the file computes. A refusal leaves
    ``model`` as it was.

    Args:
        model: float, or wrapped and calibrated.
        path: of the file to write; weights above 2 GB go to ``<path>.data`` beside it.
        target: ``onnxruntime``, ``openvino``, ``tensorrt``; None exports a float model as it is.
        recipe: a recipe or the name of a preset to change to first.
        opset: of the standard operators, 18 to 25.

    Raises:
        ExportError: for a target or opset that does not exist, a model that is not quantized, a recipe that the target
            cannot run (every slot is named), a recipe without a target.
        CalibrationError: for slots that are not calibrated; all are named.
    """
    check_options(target, opset)
    chosen = None if target is None else target_named(target)
    specs = {slot: quantizer.spec for slot, quantizer in named_slots(model)}
    notes: list[str] = []
    changed: Recipe | None = None
    if chosen is not None:
        if not specs:
            raise ExportError("the model is not quantized: calibrate it first (qdq calibrate), or export it in float")
        if recipe is not None:
            changed = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
        elif chosen.faults(specs):
            changed = load_recipe(chosen.recipe)
            notes.append(
                f"The checkpoint's recipe cannot run on {chosen.name}: its ranges were used with the preset "
                f"{changed.name!r}."
            )
        if changed is not None:
            specs = changed.assign(specs)
        faults = chosen.faults(specs)
        if faults:
            raise ExportError(describe_faults(f"target {chosen.name} cannot run this recipe", faults))
        _check_groups(model, specs, chosen, opset)
        if changed is not None:
            _check_ranges(model, specs, changed, chosen.name)
            apply_specs(model, specs)
        _keep_weights(model, specs)
        for _, quantizer in quantizers(model):
            quantizer.freeze()
        set_mode(model, Mode.QUANTIZE)
    elif recipe is not None:
        raise ExportError("a recipe needs a target: without one the model is exported in float")
    elif specs:
        set_mode(model, Mode.OFF)
    training = model.training
    try:
        signature = signature_of(model.eval())
        graph = trace(model, signature, opset=opset)
    finally:
        model.train(training)
    ir.passes.Sequential(*(tidy() if chosen is None else chosen.passes()))(graph)
    graph.producer_name = "qdq"
    _write(graph, path)
    return Exported("float" if chosen is None else chosen.name, changed, opset, signature, tuple(notes))


def _check_groups(model: nn.Module, specs: Mapping[Slot, QuantSpec | None], target: Target, opset: int) -> None:
    groups = {slot: spec.group for slot, spec in specs.items() if spec and spec.group}
    if groups and opset < BLOCKS_SINCE:
        raise ExportError(f"scales per group need opset {BLOCKS_SINCE} or above, this is {opset}")
    widths = {slot: int(model.get_submodule(slot.module).weight.shape[-1]) for slot in groups}  # type: ignore[index]
    rests = [
        f"{slot}: groups of {size} leave a rest of {widths[slot] % size} in a width of {widths[slot]}"
        for slot, size in groups.items()
        if target.whole_groups and widths[slot] % size
    ]
    if rests:
        raise ExportError(describe_faults(f"target {target.name} takes groups that divide the width", rests))


def _keep_weights(model: nn.Module, specs: Mapping[Slot, QuantSpec | None]) -> None:
    """Weights whose range is found anew in every call have the same in every call, once they are exported."""
    if any(slot.name == "weight" and spec and spec.dynamic for slot, spec in specs.items()):
        kept = {
            slot: replace(spec, dynamic=False) if spec and slot.name == "weight" else spec
            for slot, spec in specs.items()
        }
        apply_specs(model, kept, unshared=unshared_slots(model))


def _check_ranges(model: nn.Module, specs: Mapping[Slot, QuantSpec | None], recipe: Recipe, target: str) -> None:
    """A checkpoint that was made without data has no ranges for another recipe."""
    known = dict(named_slots(model))
    wanted = needing_data(specs)
    if wanted and all(known[slot].range is None for slot in wanted):
        raise ExportError(
            f"target {target} needs the recipe {recipe.name!r} here, and the checkpoint, made without data, has no "
            "ranges for it: calibrate with --calib-data, or choose a target that runs the checkpoint's own recipe"
        )


def _write(graph: ir.Model, path: Path) -> None:
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)
    if size > _EXTERNAL_ABOVE:
        ir.save(graph, path, external_data=f"{path.name}.data")
    else:
        ir.save(graph, path)
