"""Round the weights of a model and the scales of its quantizers to half precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qdq.errors import ExportError, describe_problems
from qdq.quantization.quantizer import quantizers
from qdq.quantization.wrap import named_slots

if TYPE_CHECKING:
    from torch import nn

__all__ = ["HALF_SINCE", "TORCH_DTYPES", "check_scales", "to_dtype"]

HALF_SINCE = 19
"""The first opset whose quantizers take half precision."""

TORCH_DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def check_scales(model: nn.Module, dtype: str) -> None:
    """Check that half precision can hold the scales of ``model``: not above its range, not below its normal numbers.

    Args:
        model: The model.
        dtype: ``fp32``, ``fp16`` or ``bf16``.

    Raises:
        ExportError: If it cannot. Every slot is listed.
    """
    if dtype == "fp32":
        return
    limits = torch.finfo(TORCH_DTYPES[dtype])
    problems = []
    for slot, quantizer in named_slots(model):
        if quantizer.spec is None or quantizer.spec.dynamic or not quantizer.is_calibrated:
            continue
        scale = quantizer.scale.detach().abs()
        low, high = float(scale.min()), float(scale.max())
        if low < limits.tiny or high > limits.max:
            problems.append(f"{slot}: its scale {low if low < limits.tiny else high:.3g} is out of range")
    if problems:
        raise ExportError(
            describe_problems(
                f"{dtype} holds scales from {limits.tiny:.3g} to {limits.max:.3g}: export in fp32", problems
            )
        )


def to_dtype(model: nn.Module, dtype: str) -> None:
    """Let ``model`` compute in ``dtype``. Scales are rounded to ``dtype``, but stay tensors of float32."""
    if dtype == "fp32":
        return
    kind = TORCH_DTYPES[dtype]
    model.to(kind)
    for _, quantizer in quantizers(model):
        if quantizer.spec is not None and not quantizer.spec.dynamic:
            # The file stores scales in half precision, so torch must divide by the same rounded values.
            with torch.no_grad():
                quantizer.scale.copy_(quantizer.scale.to(kind))
