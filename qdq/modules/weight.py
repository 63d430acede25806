"""Scales of weights: they follow from the weight itself, no data is needed."""

from __future__ import annotations

import torch
from torch import Tensor

from qdq.errors import CalibrationError
from qdq.quantizer import Quantizer, Range

__all__ = ["set_weight_scale", "weight_amax"]


def weight_amax(weight: Tensor, *, axis: int | None, overflow_safe: bool = False) -> Tensor:
    """The magnitude that maps onto the highest integer.

    With ``overflow_safe``, two neighbours of one sign share it: their integers then add up to 127 at most, 128 after
    rounding, and 255 * 128 = 32,640 is the last multiple of 255 that int16 holds.

    Args:
        weight: ``(out, in)``.
        axis: the axis that keeps its own scales, None per tensor.
        overflow_safe: see :class:`qdq.spec.QuantSpec`; the pairs are neighbours on the last axis. Both alignments are
            counted, so that it does not matter where a kernel starts.

    Returns:
        float32, ``()`` or ``(weight.shape[axis],)``.
    """
    weight = weight.detach().to(torch.float32)
    others = [i for i in range(weight.dim()) if axis is None or i != axis % weight.dim()]
    amax = weight.abs().amax(dim=others)
    if overflow_safe and weight.shape[-1] > 1:
        amax = torch.maximum(amax, (weight[..., 1:] + weight[..., :-1]).abs().amax(dim=others))
    return amax


def set_weight_scale(quantizer: Quantizer, weight: Tensor) -> None:
    """Scale and zero_point of ``quantizer`` from ``weight``: max ranges, per axis as its spec says.

    Raises:
        CalibrationError: when weights are NaN or infinite.
    """
    spec = quantizer.spec
    if spec is None:
        return
    if spec.symmetric:
        amax = weight_amax(weight, axis=spec.axis, overflow_safe=spec.overflow_safe)
        range_ = Range(-amax, amax, amax)
    else:
        others = [i for i in range(weight.dim()) if spec.axis is None or i != spec.axis % weight.dim()]
        lower, upper = (reduce(weight.detach().float(), dim=others) for reduce in (torch.amin, torch.amax))
        range_ = Range(lower, upper, torch.maximum(lower.abs(), upper.abs()))
    if not bool(torch.isfinite(range_.amax).all()):
        raise CalibrationError("NaN or infinite weights have no scale")
    quantizer.set_range(range_)
