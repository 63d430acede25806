"""Wrap the modules of a float model, and give the slots of a wrapped one their specs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from qdq.errors import CalibrationError, RecipeError, describe_problems
from qdq.models.model import Model
from qdq.models.registry import task_of
from qdq.quantization.modules import WRAPPED, QuantLinear, set_weight_scale
from qdq.quantization.modules.wrapped import Wrapped
from qdq.quantization.quantizer import Mode, Quantizer, Range
from qdq.quantization.slot import KINDS, Slot
from qdq.quantization.spec import PerToken

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from qdq.quantization.spec import QuantSpec

__all__ = [
    "apply_specs",
    "check_specs",
    "named_slots",
    "same_tensor",
    "slots",
    "unshared_slots",
    "unwrap",
    "wrap",
]

_KINDS = dict(zip(WRAPPED.values(), KINDS, strict=True))


def wrap(model: nn.Module) -> dict[str, nn.Module]:
    """Replace the modules that ``qdq.quantization.modules.WRAPPED`` knows by their wrapped twins, every slot empty.

    What a checkpoint carries along and no call reaches stays as it is: nobody could calibrate it.

    Returns:
        The float modules that were replaced, by name.
    """
    named = list(model.named_modules(remove_duplicate=False))  # REALM's two embedders are one
    idle = task_of(model.config, model.task)[1].unused if isinstance(model, Model) else ()
    unused = {module for name, module in named if name.startswith(idle)}
    replaced = {name: module for name, module in named if name and type(module) in WRAPPED and module not in unused}
    for name, module in replaced.items():
        _replace(model, name, WRAPPED[type(module)].from_float(module))
    return replaced


def unwrap(model: nn.Module, replaced: Mapping[str, nn.Module]) -> None:
    """Put the float modules back that :func:`wrap` replaced and returned."""
    for name, module in replaced.items():
        _replace(model, name, module)


def _replace(model: nn.Module, name: str, module: object) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def slots(model: nn.Module) -> list[Slot]:
    """The address of every slot of a wrapped model, in the order of its modules."""
    return [
        Slot(name, _KINDS[type(module)], slot)
        for name, module in model.named_modules()
        if type(module) in _KINDS and isinstance(module, Wrapped)
        for slot in module.slots
    ]


def named_slots(model: nn.Module) -> Iterator[tuple[Slot, Quantizer]]:
    """Every slot with its quantizer; a shared quantizer comes once for each slot it serves."""
    for slot in slots(model):
        yield slot, _quantizer(model, slot)


def apply_specs(model: nn.Module, specs: Mapping[Slot, QuantSpec | None], *, unshared: Collection[Slot] = ()) -> None:
    """Give each slot its spec: a fresh quantizer for each tensor and spec, its scale set where the range is known.

    Slots that read the same tensor share one quantizer when their specs are equal: query, key and value; a weight that
    several modules share. Those in ``unshared`` have one of their own all the same, with a range of their own.
    Transforms stay, they belong to the tensors; a chosen rounding and a bias correction only where the spec stays, too.

    Raises:
        RecipeError: for specs that their slots cannot have, all of them at once. The model is then as it was.
        CalibrationError: for weights that are NaN or infinite; likewise.
    """
    check_specs(model, specs)
    problems: list[str] = []
    fresh: dict[Slot, Quantizer] = {}
    readers: dict[Slot, int] = {}
    for group in same_tensor(model, list(specs)):
        known = _union([q.range for q in dict.fromkeys(_quantizer(model, slot) for slot in group) if q.range])
        made: dict[object, Quantizer] = {}
        for slot in group:
            spec = specs[slot]
            key = (spec, slot if slot in unshared else None)
            if key not in made:
                try:
                    made[key] = _make(model, slot, spec, known)
                except CalibrationError as error:
                    made[key] = Quantizer()
                    problems.append(f"{slot}: {error}")
            elif slot.name != "weight":
                made[key].readers += 1
            fresh[slot] = made[key]
            readers[slot] = made[key].readers - 1
    if problems:
        raise CalibrationError(describe_problems("scales", problems))
    for slot, quantizer in fresh.items():
        module = model.get_submodule(slot.module)
        if isinstance(module, QuantLinear) and _quantizer(model, slot).spec != quantizer.spec:
            module.bias_correction = None
        setattr(module, f"{slot.name}_quantizer", quantizer)
        if slot.name == "input" and isinstance(module, QuantLinear):
            module.reader = readers[slot]


def check_specs(model: nn.Module, specs: Mapping[Slot, QuantSpec | None]) -> None:
    """Refuse specs that their slots cannot have; nothing is computed, the weights may be on the meta device.

    Raises:
        RecipeError: with all of them.
    """
    if problems := [problem for slot, spec in specs.items() if spec and (problem := _misfit(model, slot, spec))]:
        raise RecipeError(describe_problems("quantization specs", problems))


def unshared_slots(model: nn.Module) -> list[Slot]:
    """The slots that have a quantizer of their own although another one of the same tensor and spec exists."""
    found = []
    for group in same_tensor(model, slots(model)):
        by_spec: dict[QuantSpec | None, list[Slot]] = {}
        for slot in group:
            by_spec.setdefault(_quantizer(model, slot).spec, []).append(slot)
        for same in by_spec.values():
            if len({id(_quantizer(model, slot)) for slot in same}) > 1:
                found += same
    return found


def _union(ranges: list[Range]) -> Range | None:
    """What covers all of several ranges of one tensor."""
    if len(ranges) < 2:
        return ranges[0] if ranges else None
    lower, upper, amax = (torch.stack([getattr(r, name) for r in ranges]) for name in ("lower", "upper", "amax"))
    return Range(lower.amin(0), upper.amax(0), amax.amax(0))


def _misfit(model: nn.Module, slot: Slot, spec: QuantSpec) -> str | None:
    """Why ``spec`` is none for ``slot``."""
    if slot.name != "weight":
        parent = model.get_submodule(slot.module.rpartition(".")[0])
        if slot.kind == "matmul" and getattr(parent, "implementation", "eager") != "eager":
            return f"{slot}: attention is fused there, its products are not modules: build it with eager attention"
        if spec.axis is None and spec.group is None:
            return None
        return f"{slot}: {spec.granularity} is for weights; activations are quantized per tensor or per token"
    shape = tuple(_weight(model, slot).shape)
    if isinstance(spec.granularity, PerToken):
        return f"{slot}: {spec.granularity} is for activations; weights are quantized per tensor, per axis or per group"
    if spec.axis is not None and not -len(shape) <= spec.axis < len(shape):
        return f"{slot}: {spec.granularity} does not exist in a weight of shape {shape}"
    return None


def _make(model: nn.Module, slot: Slot, spec: QuantSpec | None, known: Range | None) -> Quantizer:
    before = _quantizer(model, slot)
    if slot.name != "weight":
        quantizer = Quantizer(spec).to(next(model.parameters()).device)
        quantizer.transform = before.transform
        if known is not None:
            quantizer.set_range(known)
        return quantizer
    weight = _weight(model, slot)
    quantizer = Quantizer(spec, shape=() if spec is None else spec.scale_shape(weight.shape)).to(weight.device)
    quantizer.transform = before.transform
    set_weight_scale(quantizer, weight)
    if spec == before.spec:
        quantizer.rounding = before.rounding
    return quantizer


def _weight(model: nn.Module, slot: Slot) -> nn.Parameter:
    weight = model.get_submodule(slot.module).weight
    assert isinstance(weight, nn.Parameter)
    return weight


def same_tensor(model: nn.Module, addresses: Sequence[Slot]) -> list[list[Slot]]:
    """Slots of a wrapped model in groups by the tensor they quantize; most groups have one member."""
    groups: dict[object, list[Slot]] = {}
    for slot in addresses:
        groups.setdefault(_tensor_key(model, slot), []).append(slot)
    return list(groups.values())


def _tensor_key(model: nn.Module, slot: Slot) -> object:
    if slot.name == "weight":
        return id(_weight(model, slot))
    # A module says in `same_input` which of its projections read the same tensor.
    parent, _, child = slot.module.rpartition(".")
    for names in getattr(model.get_submodule(parent), "same_input", ()):
        if slot.name == "input" and child in names:
            return (parent, names)
    return slot


def _quantizer(model: nn.Module, slot: Slot) -> Quantizer:
    quantizer = getattr(model.get_submodule(slot.module), f"{slot.name}_quantizer")
    assert isinstance(quantizer, Quantizer)
    assert quantizer.mode in Mode
    return quantizer
