"""Round the weights of a model and the scales of its quantizers to half precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qdq.errors import ExportError, describe_problems
from qdq.quantization.modules.linear import QuantLinear
from qdq.quantization.quantizer import quantizers
from qdq.quantization.wrap import named_slots

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qdq.quantization.transform import Transform

__all__ = ["HALF_SINCE", "TORCH_DTYPES", "check_scales", "check_weights", "to_dtype"]

HALF_SINCE = 19
"""The first opset whose quantizers take half precision."""

_SHOWN = 5  # slots in a note
_RANGES = ("scale", "lower", "upper", "amax", "zero_point", "factor")  # of quantizers; looked at elsewhere

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def check_scales(model: nn.Module, dtype: str) -> list[str]:
    """Check that half precision can hold the scales of ``model``, and say which have to be raised.

    A channel whose weights are nearly 0, or an activation that is, may have a scale below the least number of float16.
    It gets that number: its integers become smaller, and what they mean is off by less than half of it.

    Args:
        model: The model.
        dtype: ``fp32``, ``fp16`` or ``bf16``.

    Returns:
        A sentence that names the slots with such scales; none if there are none.

    Raises:
        ExportError: If scales are too large. Every slot is listed.
    """
    if dtype == "fp32":
        return []
    kind = TORCH_DTYPES[dtype]
    largest = torch.finfo(kind).max
    problems, raised = [], []
    for slot, quantizer in named_slots(model):
        if quantizer.spec is None or quantizer.spec.dynamic or not quantizer.is_calibrated:
            continue
        scale = quantizer.scale.detach().abs()
        if float(scale.max()) > largest:
            problems.append(f"{slot}: its scale {float(scale.max()):.3g} is out of range")
        coarser = int((_rounded(scale, kind) > 1.05 * scale).sum())
        if coarser:
            raised.append(f"{slot} ({coarser} of {scale.numel()})")
    if problems:
        raise ExportError(describe_problems(f"{dtype} holds scales up to {largest:.3g}: export in fp32", problems))
    if not raised:
        return []
    shown = ", ".join(raised[:_SHOWN]) + (f" and {len(raised) - _SHOWN} more slots" if len(raised) > _SHOWN else "")
    return [f"scales below what {dtype} holds well were raised, which leaves these channels fewer steps: {shown}"]


def check_weights(model: nn.Module, dtype: str) -> None:
    """Check that half precision can hold the weights of ``model``: a number beyond its range would be infinite.

    Args:
        model: The model, with its smoothing scales and shifts folded if it is exported so.
        dtype: ``fp32``, ``fp16`` or ``bf16``.

    Raises:
        ExportError: If it cannot. Every tensor is listed.
    """
    if dtype == "fp32":
        return
    kind = TORCH_DTYPES[dtype]
    problems = []
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point() or not tensor.numel() or name.endswith(_RANGES):
            continue
        values = tensor.detach()
        beyond = torch.isfinite(values) & ~torch.isfinite(values.to(kind))
        if beyond.any():
            worst = float(values[beyond].abs().max())
            problems.append(f"{name}: {int(beyond.sum())} of {values.numel()} values, up to {worst:.3g}")
    if problems:
        heading = (
            f"{dtype} holds numbers up to {torch.finfo(kind).max:.3g}, larger ones would be infinite: export in fp32"
        )
        raise ExportError(describe_problems(heading + (" or bf16" if dtype == "fp16" else ""), problems))


def to_dtype(model: nn.Module, dtype: str) -> None:
    """Let ``model`` compute in ``dtype``. Scales are rounded to ``dtype``, but stay tensors of float32.

    A scale that would become 0, or lose most of its digits, is rounded up, so that no value leaves the range.
    """
    if dtype == "fp32":
        return
    kind = TORCH_DTYPES[dtype]
    _bound_smoothing_scales(model, kind)
    model.to(kind)
    for _, quantizer in quantizers(model):
        if quantizer.spec is not None and not quantizer.spec.dynamic:
            # The file stores scales in half precision, so torch must divide by the same rounded values.
            with torch.no_grad():
                quantizer.scale.copy_(_rounded(quantizer.scale, kind))


def _bound_smoothing_scales(model: nn.Module, kind: torch.dtype) -> None:
    """Keep smoothing scales of inputs, and their inverses in the weights, within the numbers of half precision.

    A channel that is nearly always 0 has a large one. Its values times a smaller one, and its weights times the inverse
    of that, are the same product.
    """
    bounds = torch.finfo(kind).tiny, 1 / torch.finfo(kind).tiny
    bounded: dict[Transform, Tensor] = {}
    for module in model.modules():
        if not isinstance(module, QuantLinear):
            continue
        ours, theirs = module.input_quantizer.transform, module.weight_quantizer.transform
        if ours is None or ours.factor is None or theirs is None or theirs.factor is None:
            continue
        factor = ours.factor.clamp(*bounds)
        changed = factor != ours.factor
        if changed.any():
            bounded[ours] = factor
            bounded[theirs] = torch.where(changed, 1 / factor, theirs.factor)
    for transform, factor in bounded.items():  # query, key and value share one
        transform.factor = factor


def _rounded(scale: Tensor, kind: torch.dtype) -> Tensor:
    """Round scales to half precision: to the nearest number, or below the normal numbers to the next one above."""
    nearest = scale.to(kind)
    above = torch.nextafter(nearest, torch.full_like(nearest, torch.inf))
    is_low = (scale.abs() < torch.finfo(kind).tiny) & (nearest.to(scale.dtype) < scale)
    return torch.where(is_low, above, nearest).to(scale.dtype)
