"""Scales of weights: they follow from the weight itself, no data is needed."""

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
    """The largest range that a weight needs, for every scale of ``spec``.

    With ``overflow_safe``, two neighbours of one sign share the magnitude: their integers then add up to 127 at most,
    128 after rounding, and 255 * 128 = 32,640 is the last multiple of 255 that int16 holds. The pairs are neighbours on
    the last axis; both alignments are counted, so that it does not matter where a kernel starts.

    Args:
        weight: ``(out, in)``.
        spec: what to quantize it to.

    Returns:
        float32, of the shape ``spec.scale_shape(weight.shape)``.
    """
    lower, upper = value_range(weight, spec)
    amax = torch.maximum(lower.abs(), upper.abs())
    if spec.overflow_safe and weight.shape[-1] > 1:
        pairs = weight.detach().to(torch.float32)
        low, high = value_range(pairs[..., 1:] + pairs[..., :-1], spec)
        amax = torch.maximum(amax, torch.maximum(low.abs(), high.abs()))
    return Range(lower, upper, amax)


def set_weight_scale(quantizer: Quantizer, weight: Tensor) -> None:
    """Scale and zero_point of ``quantizer`` from ``weight``, transformed as it says: max ranges, as its spec says.

    A rounding that was chosen for the scale before is given up.

    Raises:
        CalibrationError: when weights are NaN or infinite.
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
