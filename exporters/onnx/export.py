"""Export a model to an ONNX file for a target."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from exporters.export_model import wrap_for_export
from exporters.interface import DTYPES, ExportInterface, check_interface
from exporters.onnx.isa import ANY, Isa, isa_named
from exporters.onnx.precision import HALF_SINCE, check_scales, check_weights, to_dtype
from exporters.onnx.restore import restored_on_error
from exporters.onnx.saturation import pair_sums, saturation_note
from exporters.onnx.targets import Target, cleanup_passes, default_opset, target_named
from exporters.onnx.trace import OPSETS, trace
from exporters.onnx.translation import BLOCKS_SINCE, FLOAT8_SINCE
from exporters.onnx.write import write_onnx
from qdq.errors import CalibrationError, ExportError, describe_problems
from qdq.models.model import Model
from qdq.quantization.fold import folded, without_transforms
from qdq.quantization.quantizer import Mode, quantizers, set_mode
from qdq.quantization.wrap import apply_specs, named_slots, same_tensor, unshared_slots
from qdq.recipes.plan import needing_data
from qdq.recipes.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from torch import nn

    from exporters.io_signature import IOSignature
    from qdq.quantization.slot import Slot
    from qdq.quantization.spec import QuantSpec

__all__ = ["ExportResult", "check_options", "export_onnx"]


@dataclass(frozen=True)
class ExportResult:
    """The result of an export.

    Args:
        target: Name of the target, ``float`` for a float model.
        recipe: The recipe that was applied; None for the checkpoint's own.
        opset: Version of the standard operators.
        signature: Inputs and outputs.
        interface: The export interface.
        notes: What a reader should know, one sentence each.
        isa: The instruction set that the integer products are written for, ``any`` for all of them.
        pair_sums: For every product whose int8 weights could saturate without VNNI: the largest sum of a pair, by the
            name of its module.
    """

    target: str
    recipe: Recipe | None
    opset: int
    signature: IOSignature
    interface: ExportInterface = ExportInterface()  # noqa: RUF009 (frozen)
    notes: tuple[str, ...] = ()
    isa: str = ANY.name
    pair_sums: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for ``export.json``, which names the interface ``form``."""
        return {
            "target": self.target,
            "recipe": None if self.recipe is None else self.recipe.to_dict(),
            "opset": self.opset,
            "inputs": list(self.signature.input_names),
            "outputs": list(self.signature.outputs),
            "form": self.interface.to_dict(),
            "notes": list(self.notes),
            "isa": self.isa,
            "pair_sums": dict(self.pair_sums),
        }


def check_options(
    target: str | None, opset: int | None, interface: ExportInterface | None = None, isa: str | Isa = ANY
) -> None:
    """Check the options of an export before anything is read or written.

    Args:
        target: Name of the target; None exports a float model.
        opset: Version of the standard operators, the target's own if None.
        interface: The export interface, the default one if None.
        isa: Instruction set, or its name.

    Raises:
        ExportError: If an option is unknown, or the target or the opset does not support it. All problems are listed.
    """
    problems: list[str] = []
    opset = default_opset(target) if opset is None else opset
    chosen, wanted = None, ANY
    with _noted(problems):
        chosen = None if target is None else target_named(target)
    with _noted(problems):
        wanted = isa if isinstance(isa, Isa) else isa_named(isa)
    if wanted != ANY and not problems and (chosen is None or not chosen.takes_isa):
        problems.append(f"an instruction set is for the target onnxruntime, not for {target or 'a float file'}")
    if opset not in OPSETS:
        problems.append(f"opset {opset} is not supported: it must be from {OPSETS.start} to {OPSETS.stop - 1}")
    dtype = "fp32" if interface is None else interface.dtype
    if dtype not in DTYPES:
        problems.append(f"no type {dtype!r}: it must be one of {', '.join(DTYPES)}")
    elif chosen is not None and dtype not in chosen.dtypes:
        problems.append(f"target {chosen.name} has no {dtype}: {chosen.dtypes_why}")
    elif dtype != "fp32" and opset in OPSETS and opset < HALF_SINCE:
        problems.append(f"{dtype} needs opset {HALF_SINCE} or above, this is {opset}")
    if problems:
        raise ExportError(problems[0] if len(problems) == 1 else describe_problems("no such export", problems))


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Add an ExportError raised inside to ``problems`` instead of letting it through."""
    try:
        yield
    except ExportError as error:
        problems.append(str(error))


def export_onnx(
    model: nn.Module,
    path: Path,
    *,
    target: str | None,
    recipe: Recipe | str | None = None,
    opset: int | None = None,
    interface: ExportInterface | None = None,
    isa: str | Isa = ANY,
) -> ExportResult:
    """Export ``model`` to the file ``path``.

    A calibrated model is exported with its own specs if the target can run them. If it cannot (TensorRT has no uint8
    activations), or if ``recipe`` is given, the slots of ``model`` get that recipe, or the preset of the target, with
    the ranges that calibration found. ``model`` then computes what the file computes. If the export fails, ``model``
    stays as it was.

    Args:
        model: A float model, or a wrapped and calibrated one.
        path: The file to write. Weights above 2 GB go to ``<path>.data`` beside it.
        target: ``onnxruntime``, ``openvino`` or ``tensorrt``; None exports a float model as it is.
        recipe: Recipe, or name of a preset, to apply before the export.
        opset: Version of the standard operators, 18 to 25. If None, 23 for onnxruntime, which has attention as one
            operator then, and 21 otherwise.
        interface: Inputs, outputs and float type of the file, the default
            :class:`~exporters.interface.ExportInterface` if None. Half precision rounds the weights and scales of
            ``model``, which computes in it afterwards.
        isa: Instruction set to write the integer products for: ``any`` (exact on every CPU), ``avx2``, ``avx512``,
            ``vnni``, ``arm``, or ``auto`` for the one of this machine. For the target onnxruntime only.

    Returns:
        What was exported.

    Raises:
        ExportError: If an option is unknown, the model is not quantized, a recipe is given without a target, the target
            cannot run the recipe (every slot is listed), or the model cannot have this interface.
        CalibrationError: If slots are not calibrated. All of them are listed.
    """
    interface = interface or ExportInterface()
    isa = isa if isinstance(isa, Isa) else isa_named(isa)
    check_options(target, opset, interface, isa)
    opset = default_opset(target) if opset is None else opset
    if isinstance(model, Model):
        check_interface(model, interface)
    chosen = None if target is None else target_named(target)
    specs = {slot: quantizer.spec for slot, quantizer in named_slots(model)}
    notes: list[str] = []
    changed: Recipe | None = None
    if chosen is not None:
        if not specs:
            raise ExportError(
                "the model is not quantized: calibrate it first (qdq calibrate), or export it in float (--float)",
            )
        if recipe is not None:
            changed = recipe if isinstance(recipe, Recipe) else load_recipe(recipe)
        elif chosen.problems(specs):
            changed = load_recipe(chosen.recipe)
            notes.append(
                f"The checkpoint's recipe cannot run on {chosen.name}: its ranges were used with the preset "
                f"{changed.name!r}."
            )
        if changed is not None:
            specs = changed.assign(specs)
        problems = chosen.problems(specs)
        if problems:
            raise ExportError(describe_problems(f"target {chosen.name} cannot run this recipe", problems))
        _check_specs(model, specs, chosen, opset)
        with restored_on_error(model):
            if changed is not None:
                _check_ranges(model, specs, changed, chosen.name)
                apply_specs(model, specs)
            notes += _stored_twice(model, specs)
            notes += check_scales(model, interface.dtype)
            check_weights(model, interface.dtype)
            _keep_weights(model, specs)
            set_mode(model, Mode.QUANTIZE)  # raises for slots that are not calibrated
        for _, quantizer in quantizers(model):
            quantizer.freeze()  # a learned scale would be traced as a computation instead of a constant
        set_mode(model, Mode.QUANTIZE)
    elif recipe is not None:
        raise ExportError("a recipe needs a target: without one the model is exported in float")
    elif specs:
        set_mode(model, Mode.OFF)
    if chosen is None:
        check_weights(model, interface.dtype)
    to_dtype(model, interface.dtype)
    training = model.training
    try:
        # Smoothing scales and shifts exist for int8 alone: a float file leaves them out, an int8 file has them folded.
        with without_transforms(model) if chosen is None else folded(model):
            export_model = wrap_for_export(model.eval(), interface)
            graph = trace(export_model, opset=opset)
    finally:
        model.train(training)
    ir.passes.Sequential(*(cleanup_passes() if chosen is None else chosen.passes(isa)))(graph)
    graph.producer_name = "qdq"
    name, sums = "float" if chosen is None else chosen.name, {}
    if chosen is not None and chosen.takes_isa:
        graph.metadata_props["qdq.isa"] = isa.name  # so that a file without its export.json can be inspected
        sums = pair_sums(graph.graph)
        notes += saturation_note(sums, isa)
    write_onnx(graph, path)
    return ExportResult(name, changed, opset, export_model.signature, interface, tuple(notes), isa.name, sums)


def _check_specs(model: nn.Module, specs: Mapping[Slot, QuantSpec | None], target: Target, opset: int) -> None:
    """Refuse float8 and groups where the opset or the target has no operator for them."""
    if opset < FLOAT8_SINCE and any(spec and spec.is_float8 for spec in specs.values()):
        raise ExportError(f"float8 needs opset {FLOAT8_SINCE} or above, this is {opset}")
    # An odd group at the end of a row is fine for ONNX, but not for every target.
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
        raise ExportError(describe_problems(f"target {target.name} takes groups that divide the width", rests))


def _stored_twice(model: nn.Module, specs: Mapping[Slot, QuantSpec | None]) -> list[str]:
    """Return a sentence for every weight that the file stores twice, in integers and in float."""
    notes = []
    for group in same_tensor(model, list(specs)):
        quantized = [slot for slot in group if specs[slot]]
        rest = [slot for slot in group if not specs[slot]]
        if quantized and rest and group[0].name == "weight":
            ours, others = (" and ".join(map(str, part)) for part in (quantized, rest))
            notes.append(
                f"{ours} and {others} are one weight, which the recipe quantizes for the first alone: the file holds "
                "it in integers and in float. A rule with the same spec for both makes it one."
            )
    return notes


def _keep_weights(model: nn.Module, specs: Mapping[Slot, QuantSpec | None]) -> None:
    """Give weights with a dynamic range a static one: an exported weight does not change, so neither does its range."""
    if any(slot.name == "weight" and spec and spec.dynamic for slot, spec in specs.items()):
        kept = {
            slot: replace(spec, dynamic=False) if spec and slot.name == "weight" else spec
            for slot, spec in specs.items()
        }
        apply_specs(model, kept, unshared=unshared_slots(model))


def _check_ranges(model: nn.Module, specs: Mapping[Slot, QuantSpec | None], recipe: Recipe, target: str) -> None:
    """Refuse a recipe for whose slots the checkpoint has no ranges.

    A checkpoint that was quantized without data has none for another recipe. A trained one has those of its own recipe.
    """
    known = dict(named_slots(model))
    wanted = needing_data(specs)
    missing = [slot for slot in wanted if known[slot].range is None]
    if missing and len(missing) < len(wanted):
        heading = (
            f"target {target} needs the recipe {recipe.name!r} here, and the checkpoint lacks ranges (a training for "
            "another recipe drops them): calibrate or train with it, or choose a target that runs the checkpoint's own"
        )
        raise CalibrationError(describe_problems(heading, (f"no range for {slot}_quantizer" for slot in missing)))
    if missing:
        heading = (
            f"target {target} needs the recipe {recipe.name!r} here, and the checkpoint, made without data, has no "
            "ranges for it: calibrate with --calib-data, or choose a target that runs the checkpoint's own recipe"
        )
        raise ExportError(describe_problems(heading, (f"no range for {slot}_quantizer" for slot in missing)))
