"""Read and write the ranges in checkpoints of QDQBERT, ``..._quantizer._amax`` beside the weights.

A calibrated quantizer has the largest magnitude under its name: ``()`` per tensor, or ``(out, 1)`` for one per row. A
quantizer without an entry is dynamic: it takes the range of each tensor.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qdq.data.tokenizer import TOKENIZER_FILES
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
    "is_of_linear",
    "is_quantizer_key",
    "load_amax",
    "save",
    "value_problem",
]

#: The default descriptor of QuantLinear for its input: int8, per tensor.
ACTIVATION = QuantSpec(arithmetic="pytorch-quantization")

#: The default descriptor of QuantLinear for its weight: int8, per row.
WEIGHT = QuantSpec(arithmetic="pytorch-quantization", granularity=PerAxis(0))

_LOG = logging.getLogger(__name__)


def is_quantizer_key(key: str) -> bool:
    """Return whether a key of a state dict belongs to a quantizer."""
    return "_quantizer." in key


def is_of_linear(name: str) -> bool:
    """Return whether QDQBERT's name of a quantizer is that of a linear layer, and not of a product or an addition."""
    return name.rpartition(".")[2].startswith("_")


# --- reading ---


def load_amax(
    model: Model,
    tensors: Mapping[str, Tensor],
    *,
    activation: QuantSpec = ACTIVATION,
    weight: QuantSpec = WEIGHT,
    linears_only: bool = False,
    source: str = "checkpoint",
) -> None:
    """Wrap a float model and quantize it as QDQBERT does, with the ranges of a checkpoint.

    The model is then in the mode QUANTIZE. Quantizers without a range are dynamic, and weights whose range is one
    number are quantized per tensor. Query, key and value read the same tensor: if their ranges differ, each keeps its
    own quantizer and a warning is logged.

    Args:
        model: A float model of the family ``bert`` or ``qdqbert``.
        tensors: A state dict of transformers; keys that belong to no quantizer are ignored.
        activation: Bits, sign and narrow range of activations, which the checkpoint does not say.
        weight: The same for weights, with the granularity of dynamic ones.
        linears_only: Leave the products of attention and the additions float, as in a BERT whose linear layers alone
            were replaced.
        source: The name of the checkpoint, for messages.

    Raises:
        CheckpointError: QDQBERT has no such quantizer, or a range has another shape or is negative, NaN or infinite.
            The message lists all problems, and the model is not changed.
        ConfigError: The layers of the family are not BERT's.
        RecipeError: The model is wrapped already.
    """
    if any(quantizers(model)):
        raise RecipeError("the model is quantized already; ranges are loaded into a float model")
    # The wrapped modules are put back if something is wrong with the ranges.
    replaced = wrap(model)
    try:
        specs, amax = _read(model, tensors, activation, weight, source)
        if linears_only:
            specs |= {slot: None for slot, name in qdqbert_names(model).items() if not is_of_linear(name)}
        apply_amax(model, specs, amax, source=source)
    except BaseException:
        for name, module in replaced.items():
            model.set_submodule(name, module)
        raise


def _read(
    model: Model, tensors: Mapping[str, Tensor], activation: QuantSpec, weight: QuantSpec, source: str
) -> tuple[dict[Slot, QuantSpec | None], dict[Slot, Tensor]]:
    """Return the spec of every slot, and the amax of calibrated ones in the shape that a quantizer keeps."""
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
    """Return the granularity of an amax of this shape, or the problem with it."""
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
    """Return the problem with the values of a range, or None."""
    if not amax.is_floating_point():
        return f"{str(amax.dtype).removeprefix('torch.')}, must be floating point"
    if not bool(torch.isfinite(amax).all()):
        return "NaN or infinite, because it was never calibrated"
    if bool((amax < 0).any()):
        return f"a negative range ({float(amax.min()):.6g})"
    return None


def apply_amax(
    model: Model, specs: Mapping[Slot, QuantSpec | None], amax: Mapping[Slot, Tensor], *, source: str
) -> None:
    """Set the specs and ranges of a wrapped model and switch its quantizers on; equal ones are shared.

    Args:
        model: A wrapped model.
        specs: The spec of every slot; None for float.
        amax: The ranges of calibrated slots.
        source: The name of the source, for messages.
    """
    apply_specs(model, specs)
    shared: dict[Quantizer, list[Slot]] = {}
    for slot, quantizer in named_slots(model):
        if slot in amax:
            shared.setdefault(quantizer, []).append(slot)
    unequal = [group for group in shared.values() if len({float(amax[slot].max()) for slot in group}) > 1]
    if unequal:
        own = [slot for group in unequal for slot in group]
        _LOG.warning(
            "%s: %d tensors that several layers read, such as query, key and value, have %d different ranges: "
            "each layer keeps its own quantizer",
            *(source, len(unequal), len(own)),
        )
        apply_specs(model, specs, unshared=own)
    for slot, quantizer in named_slots(model):
        if slot in amax:
            value = amax[slot].to(next(model.parameters()).device)
            quantizer.set_range(Range(-value, value, value))
    set_mode(model, Mode.QUANTIZE)


# --- writing ---


def amax_tensors(model: Model, *, activation: QuantSpec = ACTIVATION, weight: QuantSpec = WEIGHT) -> dict[str, Tensor]:
    """Return the ranges of a quantized model with the keys and shapes of QDQBERT; dynamic quantizers have none.

    Args:
        model: A model of the family ``bert`` or ``qdqbert`` that is quantized exactly where QDQBERT is.
        activation: Bits, sign and narrow range that the reader of the checkpoint will use for inputs, since the file
            does not say them.
        weight: The same for weights.

    Raises:
        ExportError: QDQBERT cannot compute what some slots compute; the message lists all of them.
        ConfigError: The layers of the family are not BERT's.
    """
    names, prefix = qdqbert_names(model), prefix_of(model)
    found, problems = {}, []
    for slot, quantizer in named_slots(model):
        expected = weight if slot.name == "weight" else activation
        if problem := _misfit(quantizer, expected, is_quantized_there=slot in names):
            problems.append(f"{slot}: {problem}")
        elif quantizer.spec is not None and not quantizer.spec.dynamic:
            amax, axis = amax_of(quantizer), quantizer.spec.axis
            found[f"{prefix}{names[slot]}._amax"] = amax.reshape(amax_shape(axis)).clone()
    if not names:
        problems.append("the model has no slots: wrap and calibrate it first")
    if problems:
        raise ExportError(describe_problems("QDQBERT", problems))
    return found


def _misfit(quantizer: Quantizer, expected: QuantSpec, *, is_quantized_there: bool) -> str | None:
    """Return why QDQBERT cannot compute what the quantizer computes, or None."""
    spec = quantizer.spec
    if not is_quantized_there:
        return None if spec is None else "is quantized, but is float in QDQBERT"
    if spec is None:
        return "is float, but QDQBERT quantizes it (with a dynamic range if it has no other)"
    if not quantizer.is_calibrated:
        return "is not calibrated"
    wanted = (expected.bits, expected.signed, expected.narrow_range)
    if spec.is_float8 or not spec.symmetric or spec.middle or (spec.bits, spec.signed, spec.narrow_range) != wanted:
        return f"is {spec}, but its reader expects {expected}"
    dynamic_axis = spec.dynamic and spec.granularity != expected.granularity
    if spec.learned_scale or dynamic_axis or not isinstance(spec.granularity, PerTensor | PerAxis):
        return f"is {spec}, which QDQBERT does not have"
    return None


def amax_of(quantizer: Quantizer) -> Tensor:
    """Return the largest magnitude of a calibrated symmetric quantizer, in the shape of its scale."""
    assert quantizer.spec is not None
    # The arithmetic of pytorch-quantization keeps amax itself; others only have the scale.
    if hasattr(quantizer, "amax"):
        return quantizer.amax.detach()
    return quantizer.scale.detach() * quantizer.spec.qmax


def amax_shape(axis: int | None) -> tuple[int, ...]:
    """Return the shape in which QDQBERT keeps the ranges of a matrix, for ``Tensor.reshape``."""
    return () if axis is None else (-1, 1) if axis % 2 == 0 else (1, -1)


def save(
    model: Model,
    path: str | Path,
    *,
    activation: QuantSpec = ACTIVATION,
    weight: QuantSpec = WEIGHT,
    source: str | Path | None = None,
) -> None:
    """Write a QDQBERT checkpoint, ``config.json`` and ``model.safetensors``, with the keys of transformers.

    The directory is written completely or not at all.

    Args:
        model: A quantized model of the family ``qdqbert``.
        path: The directory to write.
        activation: See :func:`amax_tensors`.
        weight: See :func:`amax_tensors`.
        source: The directory that the model came from, whose tokenizer is copied.

    Raises:
        ExportError: QDQBERT cannot compute what some slots compute; the message lists all of them.
        ConfigError: The model is of another family, or ``path`` holds something other than a checkpoint.
        StorageError: A file cannot be written, for instance because the disk is full.
    """
    if model.config.model_type != "qdqbert":
        raise ConfigError(f"model_type is '{model.config.model_type}', a QDQBERT checkpoint is of 'qdqbert'")
    ranges = amax_tensors(model, activation=activation, weight=weight)
    with atomic_directory(Path(path), kind="checkpoint") as folder:
        save_model(model, folder, extra=ranges)
        for name in TOKENIZER_FILES if source is not None else ():
            if (file := Path(str(source)) / name).is_file():
                shutil.copyfile(file, folder / name)
