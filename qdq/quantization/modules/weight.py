"""Scales of weights, which follow from the weights themselves without data."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qdq.errors import CalibrationError
from qdq.quantization.functional import value_range
from qdq.quantization.quantizer import Quantizer, Range

if TYPE_CHECKING:
    from torch import Tensor

    from qdq.quantization.spec import QuantSpec

__all__ = ["set_weight_scale", "weight_range"]


def weight_range(weight: Tensor, spec: QuantSpec) -> Range:
    """Return the range of a weight for every scale of ``spec``.

    With ``overflow_safe``, amax is at least the magnitude of the sum of any two neighbors on the last axis. Their
    integers then add up to at most 127, or 128 after rounding. 255 * 128 = 32,640 is the last multiple of 255 that
    int16 can hold. All neighbors count, so that it does not matter where the pairs of a kernel start.

    Args:
        weight: ``(out, in)``.
        spec: How to quantize it.

    Returns:
        A range of float32 tensors of shape ``spec.scale_shape(weight.shape)``.
    """
    lower, upper = value_range(weight, spec)
    amax = torch.maximum(lower.abs(), upper.abs())
    if spec.overflow_safe and weight.shape[-1] > 1:
        # The sum of two neighbors of opposite signs is no larger than the larger one, so it changes nothing.
        pairs = weight.detach().to(torch.float32)
        low, high = value_range(pairs[..., 1:] + pairs[..., :-1], spec)
        amax = torch.maximum(amax, torch.maximum(low.abs(), high.abs()))
    return Range(lower, upper, amax)


def set_weight_scale(quantizer: Quantizer, weight: Tensor) -> None:
    """Set the scale and zero point of a quantizer from a weight, which its transform is applied to first.

    A rounding that was chosen for the previous scale is removed.

    Args:
        quantizer: The quantizer of the weight.
        weight: The weight.

    Raises:
        CalibrationError: Weights are NaN or infinite.
    """
    quantizer.rounding = None
    if quantizer.spec is None:
        return
    if quantizer.transform is not None:
        weight = quantizer.transform(weight.detach())
    range_ = weight_range(weight, quantizer.spec)
    if not bool(torch.isfinite(range_.amax).all()):
        raise CalibrationError("NaN or infinite weights have no scale")
    quantizer.set_range(range_)
