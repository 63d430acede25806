"""The arithmetic of quantization, as pure functions, and the one operator that all of the package runs it through.

ONNX's QuantizeLinear and DequantizeLinear, in float32:

    q = saturate(round_half_even(x / scale) + zero_point)        a true division, not a product with 1/scale
    y = (q - zero_point) * scale

:func:`fake_quantize` is both in one registered operator, ``qdq::fake_quantize``. Evaluation, training and export call
the same one, so that an exported graph has one node for each quantizer and ONNX Runtime finds the same integers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["dequantize", "fake_quantize", "quantize", "scale_and_zero_point"]

_TINY = torch.finfo(torch.float32).tiny


def _broadcast(parameter: Tensor, x: Tensor, axis: int | None) -> Tensor:
    """``(channels,)`` -> ``(1, .., channels, .., 1)`` so that it meets ``axis`` of ``x``; a scalar stays one."""
    if axis is None:
        return parameter
    shape = [1] * x.dim()
    shape[axis] = -1
    return parameter.reshape(shape)


def quantize(x: Tensor, scale: Tensor, zero_point: Tensor, *, qmin: int, qmax: int, axis: int | None = None) -> Tensor:
    """Integers of ``x``, in float32, as ONNX's QuantizeLinear finds them.

    Args:
        x: any shape, any floating type.
        scale: float32, ``()`` or ``(x.shape[axis],)``, positive.
        zero_point: int32, the shape of ``scale``.
        qmin: lowest integer.
        qmax: highest integer.
        axis: the axis of ``x`` that keeps its own scales; None per tensor.
    """
    return _unbounded(x, scale, zero_point, axis).clamp_(qmin, qmax)


def _unbounded(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:
    """The integers before saturation, a new tensor."""
    # No `to` without need: it would return x itself, which torch.library.opcheck forbids inside an operator.
    x = x if x.dtype == torch.float32 else x.to(torch.float32)
    return (x / _broadcast(scale, x, axis)).round_().add_(_broadcast(zero_point, x, axis))


def dequantize(q: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int | None = None) -> Tensor:
    """``(q - zero_point) * scale`` in float32, ONNX's DequantizeLinear; ``q`` of any type, integers included."""
    # Convert first: a difference of 8-bit integers would wrap around.
    return (q.to(torch.float32) - _broadcast(zero_point, q, axis)) * _broadcast(scale, q, axis)


@torch.library.custom_op("qdq::fake_quantize", mutates_args=())
def _fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int | None) -> Tensor:
    zero = _broadcast(zero_point, x, axis)
    q = quantize(x, scale, zero_point, qmin=qmin, qmax=qmax, axis=axis)
    return q.sub_(zero).mul_(_broadcast(scale, x, axis)).to(x.dtype)


@_fake_quantize.register_fake
def _(x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int | None) -> Tensor:  # noqa: ARG001
    return torch.empty_like(x)


def _save_inside(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, scale, zero_point, qmin, qmax, axis = inputs
    q = _unbounded(x.detach(), scale, zero_point, axis)
    ctx.save_for_backward((q >= qmin) & (q <= qmax))


def _straight_through(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (inside,) = ctx.saved_tensors
    return gradient * inside, None, None, None, None, None


_fake_quantize.register_autograd(_straight_through, setup_context=_save_inside)


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, *, qmin: int, qmax: int, axis: int | None = None
) -> Tensor:
    """Quantize and dequantize: ``x`` rounded to the grid of ``scale`` and ``zero_point``, in the type of ``x``.

    The gradient passes straight through where the integer is within ``[qmin, qmax]`` and is zero elsewhere
    (Bengio et al. 2013, arXiv 1308.3432). Arguments as in :func:`quantize`.
    """
    result: Tensor = _fake_quantize(x, scale, zero_point, qmin, qmax, axis)
    return result


def scale_and_zero_point(
    lower: Tensor, upper: Tensor, *, qmin: int, qmax: int, symmetric: bool
) -> tuple[Tensor, Tensor]:
    """The grid that covers a range.

    Symmetric: the scale maps ``max(|lower|, |upper|)`` onto the largest distance that both sides have, and the zero
    point is 0, or the middle of unsigned integers (128 for uint8, so that int8 and uint8 hold the same grid).
    Affine: the range is widened to hold 0, which gets an integer of its own, so that padding and ReLU stay exact.

    Args:
        lower: float32, any shape; per tensor ``()``, per axis ``(channels,)``.
        upper: the shape of ``lower``.
        qmin: lowest integer.
        qmax: highest integer.
        symmetric: see above.

    Returns:
        scale (float32) and zero_point (int32), both of the shape of ``lower``. A range of width zero gives the scale
        1, which holds its only value, 0, exactly. A range that is not finite gives a scale that is not.
    """
    lower, upper = lower.to(torch.float32), upper.to(torch.float32)
    if symmetric:
        middle = 0 if qmin < 0 else (qmax + 1) // 2
        scale = torch.maximum(lower.abs(), upper.abs()) / (qmax - middle)
        zero_point = torch.full_like(scale, middle, dtype=torch.int32)
    else:
        lower, upper = lower.clamp(max=0), upper.clamp(min=0)
        scale = (upper / 2 - lower / 2) / (qmax - qmin) * 2  # halved: the width of a range may exceed float32
        # Divide by the scale that will be used, not by one that is about to be replaced.
        steps = lower / torch.where(scale >= _TINY, scale, 1.0)
        zero_point = (qmin - steps).round().clamp(qmin, qmax).to(torch.int32)
        zero_point = torch.where(scale >= _TINY, zero_point, 0)
    # Below the smallest normal number a division loses its digits, and runtimes refuse a scale of zero.
    return torch.where(scale < _TINY, 1.0, scale), zero_point
