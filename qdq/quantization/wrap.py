"""Wrap the modules of a float model, and give the slots of a wrapped model their specs."""

from __future__ import annotations

from typing import TYPE_CHECKING

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
    """Replace the modules in ``qdq.quantization.modules.WRAPPED`` by their wrapped versions, with empty slots.

    Modules that no call of the model reaches stay float, because they could not be calibrated.

    Args:
        model: A float model, changed in place.

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
    """Put back the float modules that :func:`wrap` replaced.

    Args:
        model: The wrapped model.
        replaced: What :func:`wrap` returned.
    """
    for name, module in replaced.items():
        _replace(model, name, module)


def _replace(model: nn.Module, name: str, module: object) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, module)


def slots(model: nn.Module) -> list[Slot]:
    """Return the address of every slot of a wrapped model, in the order of its modules."""
    return [
        Slot(name, _KINDS[type(module)], slot)
        for name, module in model.named_modules()
        if type(module) in _KINDS and isinstance(module, Wrapped)
        for slot in module.slots
    ]


def named_slots(model: nn.Module) -> Iterator[tuple[Slot, Quantizer]]:
    """Yield every slot with its quantizer; a shared quantizer once for each slot that it serves."""
    for slot in slots(model):
        yield slot, _quantizer(model, slot)


def apply_specs(model: nn.Module, specs: Mapping[Slot, QuantSpec | None], *, unshared: Collection[Slot] = ()) -> None:
    """Give each slot a new quantizer with its spec, and set its scale if the range is known.

    Slots that read the same tensor share one quantizer if their specs are equal: query, key and value, or a weight that
    several modules share. Transforms are kept, because they belong to the tensors. A chosen rounding and a bias
    correction are kept only if the spec stays the same.

    Args:
        model: A wrapped model.
        specs: The spec of each slot; None to stay float.
        unshared: Slots that get a quantizer of their own, with a range of their own.

    Raises:
        RecipeError: Slots cannot have their specs; all of them are named. The model is then unchanged.
        CalibrationError: Weights are NaN or infinite. The model is then unchanged.
    """
    check_specs(model, specs)
    problems: list[str] = []
    fresh: dict[Slot, Quantizer] = {}
    readers: dict[Slot, int] = {}
    for group in same_tensor(model, list(specs)):
        # Slots that were unshared before may have different ranges of the same tensor.
        ranges = [q.range for q in dict.fromkeys(_quantizer(model, slot) for slot in group) if q.range]
        known = Range.covering(ranges) if ranges else None
        made: dict[object, Quantizer] = {}
        for slot in group:
            spec = specs[slot]
            key = (spec, slot if slot in unshared else None)
            if key not in made:
                try:
                    made[key] = _new_quantizer(model, slot, spec, known)
                except CalibrationError as error:
                    made[key] = Quantizer()
                    problems.append(f"{slot}: {error}")
            elif slot.name != "weight":
                made[key].readers += 1
            fresh[slot] = made[key]
            readers[slot] = made[key].readers - 1
    if problems:
        raise CalibrationError(describe_problems("scales", problems))
    # Nothing was changed so far, so that an error leaves the model as it was.
    for slot, quantizer in fresh.items():
        module = model.get_submodule(slot.module)
        if isinstance(module, QuantLinear) and _quantizer(model, slot).spec != quantizer.spec:
            module.bias_correction = None
        setattr(module, f"{slot.name}_quantizer", quantizer)
        if slot.name == "input" and isinstance(module, QuantLinear):
            module.reader = readers[slot]


def check_specs(model: nn.Module, specs: Mapping[Slot, QuantSpec | None]) -> None:
    """Raise if slots cannot have their specs. Nothing is computed, so that weights may be on the meta device.

    Raises:
        RecipeError: With all of these slots.
    """
    if problems := [problem for slot, spec in specs.items() if spec and (problem := _spec_problem(model, slot, spec))]:
        raise RecipeError(describe_problems("quantization specs", problems))


def unshared_slots(model: nn.Module) -> list[Slot]:
    """Return the slots that have a quantizer of their own although another one has the same tensor and spec."""
    found = []
    for group in same_tensor(model, slots(model)):
        by_spec: dict[QuantSpec | None, list[Slot]] = {}
        for slot in group:
            by_spec.setdefault(_quantizer(model, slot).spec, []).append(slot)
        for same in by_spec.values():
            if len({id(_quantizer(model, slot)) for slot in same}) > 1:
                found += same
    return found


def _spec_problem(model: nn.Module, slot: Slot, spec: QuantSpec) -> str | None:
    """Return why a slot cannot have a spec, or None if it can."""
    if slot.name != "weight":
        parent = model.get_submodule(slot.module.rpartition(".")[0])
        if slot.kind == "matmul" and getattr(parent, "implementation", "eager") != "eager":
            return f"{slot}: fused attention has no modules for its products; build the model with eager attention"
        if spec.axis is None and spec.group is None:
            return None
        return f"{slot}: {spec.granularity} is for weights; activations are quantized per tensor or per token"
    shape = tuple(_weight(model, slot).shape)
    if isinstance(spec.granularity, PerToken):
        return f"{slot}: {spec.granularity} is for activations; weights are quantized per tensor, per axis or per group"
    if spec.axis is not None and not -len(shape) <= spec.axis < len(shape):
        return f"{slot}: {spec.granularity} does not exist in a weight of shape {shape}"
    return None


def _new_quantizer(model: nn.Module, slot: Slot, spec: QuantSpec | None, known: Range | None) -> Quantizer:
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
    # The rounding counts in steps of the scale, which is the same only for the same spec.
    if spec == before.spec:
        quantizer.rounding = before.rounding
    return quantizer


def _weight(model: nn.Module, slot: Slot) -> nn.Parameter:
    weight = model.get_submodule(slot.module).weight
    assert isinstance(weight, nn.Parameter)
    return weight


def same_tensor(model: nn.Module, addresses: Sequence[Slot]) -> list[list[Slot]]:
    """Return the slots of a wrapped model in groups that quantize the same tensor; most groups have one member."""
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
