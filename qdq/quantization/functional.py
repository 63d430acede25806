"""The arithmetic of quantization, as pure functions.

ONNX's QuantizeLinear and DequantizeLinear, computed in float32:

    q = saturate(round_half_even(x / scale) + zero_point)        a true division, not a product with 1/scale
    y = (q - zero_point) * scale

With floats of 8 bits (float8e4m3fn) q is ``saturate(round_to_float8(x / scale))``, and y is ``q * scale``.

:mod:`qdq.quantization.operators` has both steps in one operator, with gradients.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qdq.quantization.spec import FLOAT8_MAX, PerToken, QuantSpec

__all__ = [
    "dequantize",
    "expand_parameter",
    "grid",
    "quantize",
    "quantize_float8",
    "rounded_steps",
    "scale_and_zero_point",
    "value_range",
]

_SMALLEST_NORMAL = torch.finfo(torch.float32).tiny


def expand_parameter(parameter: Tensor, x: Tensor, axis: int | None, group: int | None) -> Tensor:
    """Return a scale or zero point in a shape that broadcasts with ``x``.

    1. ``(channels,)`` along ``axis`` becomes ``(1, .., channels, .., 1)``.
    2. ``(.., groups)`` on the last axis becomes the shape of ``x``.
    3. Anything else broadcasts as it is: ``()``, or ``(.., 1)`` for one scale for each token.

    Args:
        parameter: A scale or zero point.
        x: The tensor that is quantized.
        axis: The axis of ``x`` that keeps its own scales; None if there is none.
        group: The number of neighbors on the last axis that share a scale; None if they do not.
    """
    if group is not None:
        # A group may be larger than the axis that it is on.
        return parameter.repeat_interleave(min(group, x.shape[-1]), dim=-1)[..., : x.shape[-1]]
    if axis is None:
        return parameter
    shape = [1] * x.dim()
    shape[axis] = -1
    return parameter.reshape(shape)


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    qmin: int,
    qmax: int,
    axis: int | None = None,
    group: int | None = None,
) -> Tensor:
    """Return the integers of ``x``, as ONNX's QuantizeLinear computes them.

    Args:
        x: A tensor of any shape and any floating type.
        scale: Positive, float32, of shape ``()``, ``(x.shape[axis],)``, ``(.., ceil(x.shape[-1] / group))``, or one
            that broadcasts with ``x``.
        zero_point: int32, of the shape of ``scale``.
        qmin: The lowest integer.
        qmax: The highest integer.
        axis: The axis of ``x`` that keeps its own scales; None for one scale for the tensor.
        group: The number of neighbors on the last axis that share a scale; None if they do not.

    Returns:
        Whole numbers in float32, of the shape of ``x``.
    """
    zero = expand_parameter(zero_point, x, axis, group)
    return rounded_steps(x, expand_parameter(scale, x, axis, group)).add_(zero).clamp_(qmin, qmax)


def rounded_steps(x: Tensor, scale: Tensor) -> Tensor:
    """Return ``x`` in whole steps of a scale that broadcasts with it, not shifted or saturated, in a new tensor."""
    # Call `to` only where it is needed: it would return x itself, which torch.library.opcheck forbids in an operator.
    x = x if x.dtype == torch.float32 else x.to(torch.float32)
    return (x / scale).round_()


def dequantize(
    q: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int | None = None, group: int | None = None
) -> Tensor:
    """Return ``(q - zero_point) * scale`` in float32, as ONNX's DequantizeLinear computes it.

    Args:
        q: Integers of any type, or whole numbers of a floating type.
        scale: As for :func:`quantize`.
        zero_point: As for :func:`quantize`.
        axis: As for :func:`quantize`.
        group: As for :func:`quantize`.
    """
    # Convert first: a difference of 8-bit integers would wrap around.
    wide = q.to(torch.float32)
    return (wide - expand_parameter(zero_point, q, axis, group)) * expand_parameter(scale, q, axis, group)


def quantize_float8(x: Tensor, scale: Tensor, *, axis: int | None = None) -> Tensor:
    """Return the float8e4m3fn numbers of ``x``, as ONNX's QuantizeLinear computes them.

    Args:
        x: A tensor of any shape and any floating type.
        scale: Positive, float32, of shape ``()`` or ``(x.shape[axis],)``.
        axis: The axis of ``x`` that keeps its own scales; None for one scale for the tensor.

    Returns:
        Numbers that float8e4m3fn can represent, in float32, of the shape of ``x``.
    """
    x = x if x.dtype == torch.float32 else x.to(torch.float32)
    steps = x / expand_parameter(scale, x, axis, None)
    # torch's cast rounds to the nearest, ties to even, but does not saturate as ONNX does.
    return steps.clamp_(-FLOAT8_MAX, FLOAT8_MAX).to(torch.float8_e4m3fn).to(torch.float32)


def value_range(x: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Return the lowest and the highest value for every scale of ``spec``.

    Args:
        x: A tensor of any floating type.
        spec: Its granularity says which values share a scale.

    Returns:
        Two float32 tensors of shape ``spec.scale_shape(x.shape)``.
    """
    x = x.detach().to(torch.float32)
    if spec.group is not None:
        size = min(spec.group, x.shape[-1])
        groups = -(-x.shape[-1] // size)
        # Zeros may fill the last group, because every range that quantization uses includes zero.
        x = torch.nn.functional.pad(x, (0, groups * size - x.shape[-1]))
        x = x.reshape(*x.shape[:-1], groups, size)
        return x.amin(-1), x.amax(-1)
    if isinstance(spec.granularity, PerToken):
        return x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    others = [i for i in range(x.dim()) if spec.axis is None or i != spec.axis % x.dim()]
    return (x.amin(others), x.amax(others)) if others else (x, x)


def grid(lower: Tensor, upper: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """Return the quantization grid of a range: its :func:`scale_and_zero_point` for the integers of ``spec``.

    Args:
        lower: The lowest values; for a symmetric spec ``-amax``.
        upper: The highest values; for a symmetric spec ``amax``.
        spec: The integers, and whether they are symmetric.
    """
    return scale_and_zero_point(
        lower.clamp(min=0) if spec.starts_at_zero else lower,
        upper,
        qmin=spec.qmin,
        qmax=spec.qmax,
        symmetric=spec.symmetric and not spec.starts_at_zero,
    )


def scale_and_zero_point(
    lower: Tensor, upper: Tensor, *, qmin: int, qmax: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """Return the scale and zero point whose integers cover a range.

    Symmetric: the scale maps ``max(|lower|, |upper|)`` to the largest distance from the zero point that both sides
    have. The zero point is 0, or the middle of unsigned integers (128 for uint8, so that int8 and uint8 represent the
    same numbers).

    Affine: the range is widened to include 0, and 0 gets an integer of its own, so that padding and ReLU stay exact.

    Args:
        lower: float32, of any shape; ``()`` per tensor, ``(channels,)`` per axis.
        upper: Of the shape of ``lower``.
        qmin: The lowest integer.
        qmax: The highest integer.
        symmetric: Which of the two rules above applies.

    Returns:
        The scale (float32) and the zero point (int32), both of the shape of ``lower``. A range of width zero gives the
        scale 1, which represents its only value, 0, exactly. A range that is not finite gives a scale that is not.
    """
    lower, upper = lower.to(torch.float32), upper.to(torch.float32)
    if symmetric:
        middle = 0 if qmin < 0 else (qmax + 1) // 2
        scale = torch.maximum(lower.abs(), upper.abs()) / (qmax - middle)
        zero_point = torch.full_like(scale, middle, dtype=torch.int32)
    else:
        lower, upper = lower.clamp(max=0), upper.clamp(min=0)
        # Both ends are halved because the width of a range may exceed float32.
        scale = (upper / 2 - lower / 2) / (qmax - qmin) * 2
        # Divide by the scale that will be used, not by one that is about to be replaced.
        steps = lower / torch.where(scale >= _SMALLEST_NORMAL, scale, 1.0)
        zero_point = (qmin - steps).round().clamp(qmin, qmax).to(torch.int32)
        zero_point = torch.where(scale >= _SMALLEST_NORMAL, zero_point, 0)
    # Below the smallest normal number a division loses its digits, and runtimes refuse a scale of zero.
    return torch.where(scale < _SMALLEST_NORMAL, 1.0, scale), zero_point
