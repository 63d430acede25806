"""Write an ONNX model for a target."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from exporters.export_model import deploy
from exporters.interface import DTYPES, Form, check_form
from exporters.onnx.isa import ANY, Isa, isa_named
from exporters.onnx.precision import HALF_SINCE, check_scales, to_dtype
from exporters.onnx.refusal import unchanged_when_refused
from exporters.onnx.saturation import pair_sums, pairs_note
from exporters.onnx.targets import Target, target_named, tidy
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

    from exporters.io_signature import Signature
    from qdq.quantization.slot import Slot
    from qdq.quantization.spec import QuantSpec

__all__ = ["DEFAULT_OPSET", "Exported", "check_options", "export_model"]

DEFAULT_OPSET = 21


@dataclass(frozen=True)
class Exported:
    """What was written.

    Args:
        target: name of the target, ``float`` for a float model.
        recipe: the recipe in force when it is not the checkpoint's own.
        opset: of the standard operators.
        signature: inputs and outputs.
        form: that was asked for.
        notes: what a reader should know, a sentence each.
        isa: the instruction set that its integer products are written for, ``any`` when all of them.
        pair_sums: of products whose int8 weights could saturate without VNNI: the largest sum of a pair, by name.
    """

    target: str
    recipe: Recipe | None
    opset: int
    signature: Signature
    form: Form = Form()  # noqa: RUF009 (frozen)
    notes: tuple[str, ...] = ()
    isa: str = ANY.name
    pair_sums: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for ``export.json``."""
        return {
            "target": self.target,
            "recipe": None if self.recipe is None else self.recipe.to_dict(),
            "opset": self.opset,
            "inputs": list(self.signature.input_names),
            "outputs": list(self.signature.outputs),
            "form": self.form.to_dict(),
            "notes": list(self.notes),
            "isa": self.isa,
            "pair_sums": dict(self.pair_sums),
        }


def check_options(target: str | None, opset: int, form: Form | None = None, isa: str | Isa = ANY) -> None:
    """Refuse what cannot be, before anything is read or written.

    Raises:
        ExportError: for a target, an opset, a type or an instruction set that does not exist, or that a target or an
            opset has not.
    """
    problems: list[str] = []
    chosen, wanted = None, ANY
    with _noted(problems):
        chosen = None if target is None else target_named(target)
    with _noted(problems):
        wanted = isa if isinstance(isa, Isa) else isa_named(isa)
    if wanted != ANY and not problems and (chosen is None or not chosen.takes_isa):
        problems.append(f"an instruction set is for the target onnxruntime, not for {target or 'a float file'}")
    if opset not in OPSETS:
        problems.append(f"opset {opset} is not supported: it must be from {OPSETS.start} to {OPSETS.stop - 1}")
    dtype = "fp32" if form is None else form.dtype
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
    """An error of what is inside becomes one of ``problems``."""
    try:
        yield
    except ExportError as error:
        problems.append(str(error))


def export_model(
    model: nn.Module,
    path: Path,
    *,
    target: str | None,
    recipe: Recipe | str | None = None,
    opset: int = DEFAULT_OPSET,
    form: Form | None = None,
    isa: str | Isa = ANY,
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
        form: inputs, outputs and types of choice, :class:`~exporters.interface.Form` when None. With half precision the
            weights and scales of ``model`` are rounded to it, and it computes in it afterwards.
        isa: that integer products are written for: ``any`` (exact on every CPU), ``avx2``, ``avx512``, ``vnni``,
            ``arm``, or ``auto`` for that of this machine. Of the target onnxruntime.

    Raises:
        ExportError: for a target or opset that does not exist, a model that is not quantized, a recipe that the target
            cannot run (every slot is named), a recipe without a target, a form that the model cannot have.
        CalibrationError: for slots that are not calibrated; all are named.
    """
    form = form or Form()
    isa = isa if isinstance(isa, Isa) else isa_named(isa)
    check_options(target, opset, form, isa)
    if isinstance(model, Model):
        check_form(model, form)
    chosen = None if target is None else target_named(target)
    specs = {slot: quantizer.spec for slot, quantizer in named_slots(model)}
    notes: list[str] = []
    changed: Recipe | None = None
    if chosen is not None:
        if not specs:
            raise ExportError("the model is not quantized: calibrate it first (qdq calibrate), or export it in float")
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
        _check_forms(model, specs, chosen, opset)
        with unchanged_when_refused(model):
            if changed is not None:
                _check_ranges(model, specs, changed, chosen.name)
                apply_specs(model, specs)
            notes += _stored_twice(model, specs)
            check_scales(model, form.dtype)
            _keep_weights(model, specs)
            set_mode(model, Mode.QUANTIZE)  # refuses slots that are not calibrated
        for _, quantizer in quantizers(model):
            quantizer.freeze()
        set_mode(model, Mode.QUANTIZE)
    elif recipe is not None:
        raise ExportError("a recipe needs a target: without one the model is exported in float")
    elif specs:
        set_mode(model, Mode.OFF)
    to_dtype(model, form.dtype)
    training = model.training
    try:
        with without_transforms(model) if chosen is None else folded(model):
            deployed = deploy(model.eval(), form)
            graph = trace(deployed, opset=opset)
    finally:
        model.train(training)
    ir.passes.Sequential(*(tidy() if chosen is None else chosen.passes(isa)))(graph)
    graph.producer_name = "qdq"
    name, sums = "float" if chosen is None else chosen.name, {}
    if chosen is not None and chosen.takes_isa:
        graph.metadata_props["qdq.isa"] = isa.name
        sums = pair_sums(graph.graph)
        notes += pairs_note(sums, isa)
    write_onnx(graph, path)
    return Exported(name, changed, opset, deployed.signature, form, tuple(notes), isa.name, sums)


def _check_forms(model: nn.Module, specs: Mapping[Slot, QuantSpec | None], target: Target, opset: int) -> None:
    if opset < FLOAT8_SINCE and any(spec and spec.is_float8 for spec in specs.values()):
        raise ExportError(f"float8 needs opset {FLOAT8_SINCE} or above, this is {opset}")
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
    """A sentence for every weight that the file holds in integers and in float, as its readers want it."""
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
    """Weights whose range is found anew in every call have the same in every call, once they are exported."""
    if any(slot.name == "weight" and spec and spec.dynamic for slot, spec in specs.items()):
        kept = {
            slot: replace(spec, dynamic=False) if spec and slot.name == "weight" else spec
            for slot, spec in specs.items()
        }
        apply_specs(model, kept, unshared=unshared_slots(model))


def _check_ranges(model: nn.Module, specs: Mapping[Slot, QuantSpec | None], recipe: Recipe, target: str) -> None:
    """A checkpoint that was made without data has no ranges for another recipe, a trained one those of its own."""
    known = dict(named_slots(model))
    wanted = needing_data(specs)
    missing = [slot for slot in wanted if known[slot].range is None]
    if missing and len(missing) < len(wanted):
        subject = (
            f"target {target} needs the recipe {recipe.name!r} here, and the checkpoint lacks ranges (a training for "
            "another recipe drops them): calibrate or train with it, or choose a target that runs the checkpoint's own"
        )
        raise CalibrationError(describe_problems(subject, (f"no range for {slot}_quantizer" for slot in missing)))
    if missing:
        subject = (
            f"target {target} needs the recipe {recipe.name!r} here, and the checkpoint, made without data, has no "
            "ranges for it: calibrate with --calib-data, or choose a target that runs the checkpoint's own recipe"
        )
        raise ExportError(describe_problems(subject, (f"no range for {slot}_quantizer" for slot in missing)))
