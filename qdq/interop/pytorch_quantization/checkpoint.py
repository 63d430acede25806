"""Ranges in checkpoints of QDQBERT: ``..._quantizer._amax`` beside the weights, read and written.

A quantizer whose range was calibrated has the largest magnitude under its name: ``()`` per tensor, ``(out, 1)`` for one
a row. One that has none quantizes all the same, with the range of the tensor at hand.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qdq.errors import CheckpointError, ConfigError, ExportError, RecipeError, describe_problems
from qdq.interop.pytorch_quantization.slot_names import prefix_of, qdqbert_names
from qdq.models.huggingface import save_model
from qdq.models.registry import family_of
from qdq.quantization.quantizer import Mode, Quantizer, Range, quantizers, set_mode
from qdq.quantization.spec import PerAxis, PerTensor, QuantSpec
from qdq.quantization.wrap import apply_specs, named_slots, slots, wrap
from qdq.storage import atomic_directory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qdq.models.model import Model
    from qdq.quantization.slot import Slot

__all__ = [
    "ACTIVATION",
    "WEIGHT",
    "amax_of",
    "amax_shape",
    "amax_tensors",
    "apply_amax",
    "is_quantizer_key",
    "load_amax",
    "save",
    "value_problem",
]

ACTIVATION = QuantSpec(arithmetic="pytorch-quantization")
"""What QuantLinear's default descriptor says of its input: int8, one range a tensor."""

WEIGHT = QuantSpec(arithmetic="pytorch-quantization", granularity=PerAxis(0))
"""What it says of the weight: int8, one range a row."""

_LOG = logging.getLogger(__name__)


def is_quantizer_key(key: str) -> bool:
    """Whether a key of a state dict belongs to a quantizer, and not to a layer."""
    return "_quantizer." in key


# --- in ---


def load_amax(
    model: Model,
    tensors: Mapping[str, Tensor],
    *,
    activation: QuantSpec = ACTIVATION,
    weight: QuantSpec = WEIGHT,
    source: str = "checkpoint",
) -> None:
    """Wrap a float model and quantize it as QDQBERT does, with the ranges among ``tensors``; mode QUANTIZE.

    Ranges that are not there are dynamic. Weights whose range is one number are quantized per tensor. Where query, key
    and value have unequal ranges of the one tensor that they read, each keeps a quantizer of its own, and a warning is
    logged.

    Args:
        model: of the family ``bert`` or ``qdqbert``.
        tensors: a state dict of upstream's; keys that belong to no quantizer are passed over.
        activation: what the checkpoint does not tell: bits, sign and narrow range of activations.
        weight: likewise of weights; its granularity is for the dynamic ones.
        source: what error messages call the checkpoint.

    Raises:
        CheckpointError: quantizers that QDQBERT has not, ranges of another shape, negative, NaN or infinite; all of
            them at once. The model is then as it was.
        ConfigError: for a family whose layers are not BERT's.
        RecipeError: when the model is wrapped already.
    """
    if any(quantizers(model)):
        raise RecipeError("the model is quantized already; ranges are loaded into a float model")
    replaced = wrap(model)
    try:
        specs, amax = _read(model, tensors, activation, weight, source)
        apply_amax(model, specs, amax, source=source)
    except BaseException:
        for name, module in replaced.items():
            model.set_submodule(name, module)
        raise


def _read(
    model: Model, tensors: Mapping[str, Tensor], activation: QuantSpec, weight: QuantSpec, source: str
) -> tuple[dict[Slot, QuantSpec | None], dict[Slot, Tensor]]:
    """The spec of every slot, and the amax of those that have one, in the shape that a quantizer keeps it."""
    known = {name: slot for slot, name in qdqbert_names(model).items()}
    specs: dict[Slot, QuantSpec | None] = dict.fromkeys(slots(model))
    specs |= {slot: replace(weight if slot.name == "weight" else activation, dynamic=True) for slot in known.values()}
    prefix = family_of(model.config.model_type).prefix
    amax: dict[Slot, Tensor] = {}
    problems = []
    for key, tensor in tensors.items():
        if not is_quantizer_key(key):
            continue
        name, _, leaf = key.removeprefix(f"{prefix}.").rpartition(".")
        if ".clip." in key:
            problems.append(f"{key}: a learned range (learn_amax) has no counterpart; turn it into a fixed one first")
        elif name not in known or leaf != "_amax":
            problems.append(f"{key}: QDQBERT has no such quantizer in this model")
        else:
            slot = known[name]
            granularity = _granularity(model, slot, tuple(tensor.shape))
            if isinstance(granularity, str):
                problems.append(f"{key}: {granularity}")
            elif problem := value_problem(tensor):
                problems.append(f"{key}: {problem}")
            else:
                base = weight if slot.name == "weight" else activation
                specs[slot] = replace(base, granularity=granularity)
                amax[slot] = tensor.detach().to(torch.float32).reshape([-1] if isinstance(granularity, PerAxis) else [])
    if problems:
        raise CheckpointError(describe_problems(source, problems))
    return specs, amax


def _granularity(model: Model, slot: Slot, shape: tuple[int, ...]) -> PerTensor | PerAxis | str:
    """What an amax of ``shape`` is for, or why it is for nothing."""
    if set(shape) <= {1}:
        return PerTensor()
    if slot.name != "weight":
        return f"shape {list(shape)}, the range of an activation is one number"
    rows, columns = model.get_parameter(f"{slot.module}.weight").shape
    if shape in ((rows, 1), (rows,)):
        return PerAxis(0)
    if shape == (1, columns):
        return PerAxis(1)
    return f"shape {list(shape)}, the range of this weight is [{rows}, 1], [1, {columns}] or one number"


def value_problem(amax: Tensor) -> str | None:
    """What is wrong with the values."""
    if not amax.is_floating_point():
        return f"{str(amax.dtype).removeprefix('torch.')}, must be floating point"
    if not bool(torch.isfinite(amax).all()):
        return "NaN or infinite, never calibrated on any data"
    if bool((amax < 0).any()):
        return f"a negative range ({float(amax.min()):.6g})"
    return None


def apply_amax(
    model: Model, specs: Mapping[Slot, QuantSpec | None], amax: Mapping[Slot, Tensor], *, source: str
) -> None:
    """Give the slots of a wrapped model specs and ranges, share quantizers where both are equal, and switch them on."""
    apply_specs(model, specs)
    shared: dict[Quantizer, list[Slot]] = {}
    for slot, quantizer in named_slots(model):
        if slot in amax:
            shared.setdefault(quantizer, []).append(slot)
    unequal = [group for group in shared.values() if len({float(amax[slot].max()) for slot in group}) > 1]
    if unequal:
        own = [slot for group in unequal for slot in group]
        _LOG.warning(
            "%s: %d tensors that several layers read (such as query, key and value) have %d unequal ranges: "
            "each keeps a quantizer of its own",
            *(source, len(unequal), len(own)),
        )
        apply_specs(model, specs, unshared=own)
    for slot, quantizer in named_slots(model):
        if slot in amax:
            value = amax[slot].to(next(model.parameters()).device)
            quantizer.set_range(Range(-value, value, value))
    set_mode(model, Mode.QUANTIZE)


# --- out ---


def amax_tensors(model: Model, *, activation: QuantSpec = ACTIVATION, weight: QuantSpec = WEIGHT) -> dict[str, Tensor]:
    """The ranges of a quantized model under QDQBERT's keys and in its shapes; dynamic ones have none.

    Args:
        model: of the family ``bert`` or ``qdqbert``, quantized where QDQBERT is, and nowhere else.
        activation: bits, sign and narrow range of the descriptor that the reader will have for inputs: they are not in
            the file.
        weight: likewise for weights.

    Raises:
        ExportError: for slots that QDQBERT could not compute as they are, all of them at once.
        ConfigError: for a family whose layers are not BERT's.
    """
    names, prefix = qdqbert_names(model), prefix_of(model)
    found, problems = {}, []
    for slot, quantizer in named_slots(model):
        expected = weight if slot.name == "weight" else activation
        if problem := _misfit(quantizer, expected, is_place=slot in names):
            problems.append(f"{slot}: {problem}")
        elif quantizer.spec is not None and not quantizer.spec.dynamic:
            amax, axis = amax_of(quantizer), quantizer.spec.axis
            found[f"{prefix}{names[slot]}._amax"] = amax.reshape(amax_shape(axis)).clone()
    if not names:
        problems.append("no slots: wrap and calibrate the model first")
    if problems:
        raise ExportError(describe_problems("QDQBERT", problems))
    return found


def _misfit(quantizer: Quantizer, expected: QuantSpec, *, is_place: bool) -> str | None:
    """Why QDQBERT could not compute what ``quantizer`` does."""
    spec = quantizer.spec
    if not is_place:
        return None if spec is None else "is quantized, it is float in QDQBERT"
    if spec is None:
        return "is float, QDQBERT quantizes it (with a dynamic range where it has none)"
    if not quantizer.is_calibrated:
        return "is not calibrated"
    wanted = (expected.bits, expected.signed, expected.narrow_range)
    if spec.is_float8 or not spec.symmetric or spec.middle or (spec.bits, spec.signed, spec.narrow_range) != wanted:
        return f"is {spec}, its reader has {expected}"
    dynamic_axis = spec.dynamic and spec.granularity != expected.granularity
    if spec.learned_scale or dynamic_axis or not isinstance(spec.granularity, PerTensor | PerAxis):
        return f"is {spec}, which it does not know"
    return None


def amax_of(quantizer: Quantizer) -> Tensor:
    """The largest magnitude that a calibrated symmetric quantizer holds, in the shape of its scale."""
    assert quantizer.spec is not None
    if hasattr(quantizer, "amax"):
        return quantizer.amax.detach()
    return quantizer.scale.detach() * quantizer.spec.qmax


def amax_shape(axis: int | None) -> tuple[int, ...]:
    """The shape that upstream keeps the ranges of a matrix in, for ``Tensor.reshape``."""
    return () if axis is None else (-1, 1) if axis % 2 == 0 else (1, -1)


def save(model: Model, path: str | Path, *, activation: QuantSpec = ACTIVATION, weight: QuantSpec = WEIGHT) -> None:
    """Write a QDQBERT checkpoint: ``config.json`` and ``model.safetensors``, weights and ranges under upstream's keys.

    The directory appears whole or not at all. For the other arguments see :func:`amax_tensors`.

    Raises:
        ExportError: for slots that QDQBERT could not compute as they are, all of them at once.
        ConfigError: for a model of another family, or when something that is not ours is in the way.
        StorageError: when the disk is full, or the like.
    """
    if model.config.model_type != "qdqbert":
        raise ConfigError(f"model_type is '{model.config.model_type}', a QDQBERT checkpoint is of 'qdqbert'")
    ranges = amax_tensors(model, activation=activation, weight=weight)
    with atomic_directory(Path(path), kind="checkpoint") as folder:
        save_model(model, folder, extra=ranges)
