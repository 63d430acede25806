"""The arithmetic of quantization, as pure functions, and the one operator that all of the package runs it through.

ONNX's QuantizeLinear and DequantizeLinear, in float32:

    q = saturate(round_half_even(x / scale) + zero_point)        a true division, not a product with 1/scale
    y = (q - zero_point) * scale

With floats of 8 bits (float8e4m3fn) q is ``saturate(round_to_float8(x / scale))``, and y is ``q * scale``.

:func:`fake_quantize` is both in one registered operator, ``qdq::fake_quantize``. Evaluation, training and export call
the same one, so that an exported graph has one node for each quantizer and ONNX Runtime finds the same integers.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from qdq.quantization.spec import FLOAT8_MAX, PerToken, QuantSpec

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = [
    "dequantize",
    "dynamic_fake_quantize",
    "fake_quantize",
    "fake_quantize_by_amax",
    "fake_quantize_float8",
    "grid",
    "quantize",
    "quantize_float8",
    "rounded",
    "scale_and_zero_point",
    "scale_gradient",
    "spread",
    "value_range",
]

_TINY = torch.finfo(torch.float32).tiny
_FLOAT8_END = 464  # what rounds to 448 still: half of the step that would follow, which goes to the even neighbour


def spread(parameter: Tensor, x: Tensor, axis: int | None, group: int | None) -> Tensor:
    """A scale or zero point in the form that meets ``x``.

    1. ``(channels,)`` along ``axis`` -> ``(1, .., channels, .., 1)``.
    2. ``(.., groups)`` on the last axis -> the shape of ``x``.
    3. Anything else meets ``x`` as it is: ``()``, or ``(.., 1)`` for one scale a token.
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
    """Integers of ``x``, in float32, as ONNX's QuantizeLinear finds them.

    Args:
        x: any shape, any floating type.
        scale: float32, ``()``, ``(x.shape[axis],)``, ``(.., ceil(x.shape[-1] / group))``, or of a shape that meets
            ``x``; positive.
        zero_point: int32, the shape of ``scale``.
        qmin: lowest integer.
        qmax: highest integer.
        axis: the axis of ``x`` that keeps its own scales; None per tensor.
        group: how many neighbours on the last axis share a scale; None when they do not.
    """
    zero = spread(zero_point, x, axis, group)
    return _steps(x, spread(scale, x, axis, group)).add_(zero).clamp_(qmin, qmax)


def _steps(x: Tensor, scale: Tensor) -> Tensor:
    """``x`` in whole steps of a scale that meets it, neither shifted nor saturated; a new tensor."""
    # No `to` without need: it would return x itself, which torch.library.opcheck forbids inside an operator.
    x = x if x.dtype == torch.float32 else x.to(torch.float32)
    return (x / scale).round_()


def _bounds(zero_point: Tensor, x: Tensor, qmin: int, qmax: int, axis: int | None, group: int | None) -> Any:
    """The lowest and the highest number of steps from 0, as numbers where there is one zero point, or none but 0."""
    if zero_point.device.type == "cpu":  # elsewhere a look at the values would stop and wait for the device
        if zero_point.dim() == 0:
            only = int(zero_point)
            return qmin - only, qmax - only
        if not zero_point.any():
            return qmin, qmax
    zero = spread(zero_point, x, axis, group)
    return (qmin - zero).to(torch.float32), (qmax - zero).to(torch.float32)


def dequantize(
    q: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int | None = None, group: int | None = None
) -> Tensor:
    """``(q - zero_point) * scale`` in float32, ONNX's DequantizeLinear; ``q`` of any type, integers included."""
    # Convert first: a difference of 8-bit integers would wrap around.
    return (q.to(torch.float32) - spread(zero_point, q, axis, group)) * spread(scale, q, axis, group)


# Defined piece by piece: torch.library.custom_op does it in one, for three times the cost of a call (80 us against 25).
_LIBRARY = torch.library.Library("qdq", "FRAGMENT")  # type: ignore[no-untyped-call]
_ARGUMENTS = "Tensor x, Tensor scale, Tensor zero_point, int qmin, int qmax, int? axis, int? group=None"


def _operator(
    name: str, arguments: str, *, dtype: torch.dtype | None = None
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a function as ``qdq::name`` for all devices and give back the operator.

    Its result is a new tensor like the first argument ``x``, in ``dtype`` if that is given.
    """

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        schema = f"{name}({arguments}) -> Tensor"
        _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"qdq::{name}", lambda x, *_, **__: torch.empty_like(x, dtype=dtype), lib=_LIBRARY)
        operator: Callable[..., Tensor] = getattr(torch.ops.qdq, name).default
        return operator

    return register


@_operator("fake_quantize", _ARGUMENTS)
def _fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int | None, group: int | None = None
) -> Tensor:
    step = spread(scale, x, axis, group)
    # Saturating the steps is saturating the integers: one pass over memory less to shift, one to shift back.
    low, high = _bounds(zero_point, x, qmin, qmax, axis, group) if x.numel() else (0, 0)
    return _steps(x, step).clamp_(low, high).mul_(step).to(x.dtype)


@_operator("is_inside", _ARGUMENTS, dtype=torch.int8)
def _is_inside(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int | None, group: int | None = None
) -> Tensor:
    """1 where the integer needs no saturation, as int8: torch compares and stores floats and bytes fast, not bools."""
    low, high = _bounds(zero_point, x, qmin, qmax, axis, group) if x.numel() else (0, 0)
    q = _steps(x, spread(scale, x, axis, group))
    return q.clamp(low, high).eq_(q).to(torch.int8)


def _save_for_gradients(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, scale, zero_point, qmin, qmax, axis, group = inputs
    ctx.learned = ctx.needs_input_grad[1]
    ctx.plain = not ctx.learned and _can_look(x, scale, axis)
    if ctx.learned or ctx.plain:
        ctx.settings = qmin, qmax, axis, group
        ctx.save_for_backward(x, scale, zero_point)
    else:
        ctx.save_for_backward(_is_inside(x.detach(), scale, zero_point, qmin, qmax, axis, group))


def _can_look(x: Tensor, scale: Tensor, axis: int | None) -> bool:
    """Whether a few values tell what is inside, so that no mask has to be made.

    1. One scale for the tensor: two bounds do, and the values themselves, which the backward pass compares with them.
    2. A weight with scales for its channels, around zero: none lies outside as long as its scales follow it.

    Elsewhere than on the CPU a look at a value would stop and wait for the device.
    """
    # what traces a graph comes with tensors of other types
    if x.device.type != "cpu" or x.dtype != torch.float32 or type(x) not in (Tensor, torch.nn.Parameter):
        return False
    if type(scale) is not Tensor or torch.compiler.is_compiling():
        return False
    return scale.dim() == 0 or (scale.dim() == 1 and axis is not None and isinstance(x, torch.nn.Parameter))


def _passed(
    gradient: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    axis: int | None,
    group: int | None,
) -> Tensor:
    """The gradient where the integer of ``x`` needs no saturation, zero elsewhere; for what ``_can_look`` allows."""
    if scale.dim() == 0:
        if not x.numel():
            return gradient
        low, high = _first_outside(float(scale), int(zero_point), qmin, qmax)
        least, most = (float(end) for end in torch.aminmax(x))
        if low < least and most < high:
            return gradient
        if not math.isnan(least):  # what is not a number gets no gradient, but would here
            passed: Tensor = torch.ops.aten.hardtanh_backward(gradient, x, low, high)
            return passed
    elif axis is not None and not zero_point.any():
        others = [i for i in range(x.dim()) if i != axis % x.dim()]
        reach = torch.linalg.vector_norm(x, torch.inf, others)
        # well within the last step, so that no rounding of this comparison matters
        if bool((reach <= scale * (min(-qmin, qmax) + 0.49)).all()):
            return gradient
    return gradient * _is_inside(x, scale, zero_point, qmin, qmax, axis, group).to(gradient.dtype)


def _first_outside(scale: float, zero_point: int, qmin: int, qmax: int) -> tuple[float, float]:
    """The float32 numbers next to those that are rounded to integers from ``qmin`` to ``qmax``: below and above."""
    step = np.float32(scale)
    bounds = []
    for end, away in ((qmin - zero_point, -1), (qmax - zero_point, 1)):
        beyond = np.float32(away * np.inf)
        with np.errstate(over="ignore"):  # no number lies outside then
            bound = np.float32((end + 0.5 * away) * scale)
        while (np.rint(bound / step) - end) * away > 0:  # too far out
            bound = np.nextafter(bound, -beyond)
        while (np.rint(bound / step) - end) * away <= 0:  # still inside
            bound = np.nextafter(bound, beyond)
        bounds.append(float(bound))
    return bounds[0], bounds[1]


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Straight through inside the range; with a scale that is trained, all as in LSQ (equations 3 and 5)."""
    if ctx.plain:
        return _passed(gradient, *ctx.saved_tensors, *ctx.settings), *[None] * 6
    if not ctx.learned:
        (inside,) = ctx.saved_tensors
        return gradient * inside.to(gradient.dtype), *[None] * 6
    x, scale, zero_point = ctx.saved_tensors
    qmin, qmax, axis, group = ctx.settings
    x = x.to(torch.float32)
    zero = spread(zero_point, x, axis, group)
    steps = x / spread(scale, x, axis, group)
    low, high = (qmin - zero).float(), (qmax - zero).float()
    # The paper asks the value, not its integer: what lies beyond an end by less than half a step pulls there, too.
    inside = ((low < steps) & (steps < high)).to(torch.float32)
    saturated = torch.minimum(torch.maximum(steps.round(), low), high)
    slope = gradient.to(torch.float32) * (saturated - inside * steps)
    # What was broadcast is summed.
    to_scale = slope.sum_to_size(spread(scale, x, axis, group).shape).reshape(scale.shape)
    return gradient * inside.to(gradient.dtype), to_scale, *[None] * 5


torch.library.register_autograd("qdq::fake_quantize", _gradients, setup_context=_save_for_gradients, lib=_LIBRARY)


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    qmin: int,
    qmax: int,
    axis: int | None = None,
    group: int | None = None,
) -> Tensor:
    """Quantize and dequantize: ``x`` rounded to the grid of ``scale`` and ``zero_point``, in the type of ``x``.

    The gradient passes straight through where the integer is within ``[qmin, qmax]`` and is zero elsewhere
    (Bengio et al. 2013, arXiv 1308.3432). Where the scale requires a gradient, both have those of LSQ (Esser et al.
    2020, arXiv 1902.08153), the scale's before its normalisation: see :func:`scale_gradient`. Arguments as in
    :func:`quantize`.
    """
    return _fake_quantize(x, scale, zero_point, qmin, qmax, axis, group)


def quantize_float8(x: Tensor, scale: Tensor, *, axis: int | None = None) -> Tensor:
    """The numbers of float8e4m3fn that stand for ``x``, in float32, as ONNX's QuantizeLinear finds them.

    Args:
        x: any shape, any floating type.
        scale: float32, ``()`` or ``(x.shape[axis],)``; positive.
        axis: the axis of ``x`` that keeps its own scales; None per tensor.
    """
    x = x if x.dtype == torch.float32 else x.to(torch.float32)
    return _to_float8(x / spread(scale, x, axis, None))


def _to_float8(steps: Tensor) -> Tensor:
    """Rounded to the nearest, ties to even, and saturated, which torch's own cast leaves to the caller; in place."""
    return steps.clamp_(-FLOAT8_MAX, FLOAT8_MAX).to(torch.float8_e4m3fn).to(torch.float32)


@_operator("fake_quantize_float8", "Tensor x, Tensor scale, Tensor zero_point, int? axis")
def _fake_quantize_float8(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:  # noqa: ARG001
    return quantize_float8(x, scale, axis=axis).mul_(spread(scale, x, axis, None)).to(x.dtype)


def _save_float8(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, scale, _, axis = inputs
    x = x.detach() if x.dtype == torch.float32 else x.detach().to(torch.float32)
    ctx.save_for_backward((x / spread(scale, x, axis, None)).abs().le(_FLOAT8_END).to(torch.int8))


def _float8_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (inside,) = ctx.saved_tensors
    return gradient * inside.to(gradient.dtype), None, None, None


torch.library.register_autograd(
    "qdq::fake_quantize_float8", _float8_gradients, setup_context=_save_float8, lib=_LIBRARY
)


def fake_quantize_float8(x: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int | None = None) -> Tensor:
    """Quantize to float8e4m3fn and back: ``x`` rounded to its grid, in the type of ``x``.

    The gradient passes straight through where nothing saturates. Arguments as in :func:`quantize_float8`;
    ``zero_point`` is 0 in the shape of ``scale``, which exported graphs name the type with.
    """
    return _fake_quantize_float8(x, scale, zero_point, axis)


def rounded(x: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec, *, axis: int | None = None) -> Tensor:
    """``x`` on the grid of ``spec``: :func:`fake_quantize`, or :func:`fake_quantize_float8`.

    Args:
        x: any shape, any floating type.
        scale: of a quantizer of this spec.
        zero_point: likewise.
        spec: says which integers, or that it is float8.
        axis: the axis of ``x`` that keeps its own scales, which is not the spec's where ``x`` is a part of the tensor.
    """
    if spec.is_float8:
        return fake_quantize_float8(x, scale, zero_point, axis=axis)
    return fake_quantize(x, scale, zero_point, qmin=spec.qmin, qmax=spec.qmax, axis=axis, group=spec.group)


@_operator("dynamic_fake_quantize", "Tensor x, int qmin, int qmax, bool symmetric, bool per_token")
def _dynamic_fake_quantize(x: Tensor, qmin: int, qmax: int, symmetric: bool, per_token: bool) -> Tensor:
    lower, upper = (x.amin(-1, True), x.amax(-1, True)) if per_token else torch.aminmax(x)
    if symmetric:
        upper = torch.maximum(lower.abs(), upper.abs())
        lower = -upper
    scale, zero_point = scale_and_zero_point(lower, upper, qmin=qmin, qmax=qmax, symmetric=symmetric)
    return _fake_quantize(x, scale, zero_point, qmin, qmax, None)


def dynamic_fake_quantize(x: Tensor, *, qmin: int, qmax: int, symmetric: bool, per_token: bool) -> Tensor:
    """:func:`fake_quantize` with the range of ``x`` itself, as one operator for graphs that are exported.

    Args:
        x: any shape, any floating type.
        qmin: lowest integer.
        qmax: highest integer.
        symmetric: the range is ``[-amax, amax]``.
        per_token: every vector on the last axis has its own range; else the tensor has one.
    """
    return _dynamic_fake_quantize(x, qmin, qmax, symmetric, per_token)


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.factor, None


def scale_gradient(scale: Tensor, *, count: int, qmax: int) -> Tensor:
    """``scale`` itself, with LSQ's factor ``1 / sqrt(count * qmax)`` on its gradient (section 2.2 of the paper).

    It balances the updates of scales and weights. ``count`` is the number of values that a scale is for: weights of a
    layer or of a channel, or features of one sample.
    """
    scaled: Tensor = _ScaledGradient.apply(scale, (count * qmax) ** -0.5)  # type: ignore[no-untyped-call]
    return scaled


class _ByAmax(torch.autograd.Function):
    """The arithmetic of pytorch-quantization, with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, amax: Tensor, qmin: int, qmax: int) -> Tensor:
        ctx.save_for_backward((x.abs() <= amax).to(torch.int8))
        # float16 is computed in float32, and divided in float16 all the same; bfloat16 is left to torch's promotion.
        wide = x.to(torch.float32) if x.dtype == torch.float16 else x
        amax = amax.to(torch.float32) if amax.dtype == torch.float16 else amax
        # Tensor by tensor: torch evaluates `number / tensor` as a product with the reciprocal, one ulp off at times.
        steps = torch.tensor(float(qmax), device=amax.device) / amax
        dead = amax <= 2.0**-24
        q = (wide * torch.where(dead, 0.0, steps)).round_().clamp_(qmin, qmax)
        q = q if wide is x else q.to(x.dtype)
        return q.div_(torch.where(dead, 1.0, steps).to(x.dtype)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return torch.where(inside.bool(), gradient, 0), None, None, None


def fake_quantize_by_amax(x: Tensor, amax: Tensor, *, qmin: int, qmax: int, axis: int | None = None) -> Tensor:
    """Fake quantization as pytorch-quantization's default path has it: ``round(x * s) / s`` with ``s = qmax / amax``.

    It differs from :func:`fake_quantize` in the last bit of the result, and by a step at rounding ties. A range of
    2**-24 or less gives zeros. The gradient passes where ``|x| <= amax``.

    Equal to the bit for the same types, the weaknesses of half precision included: ``s`` is rounded to the type of
    ``x`` before the division, so that in float16 ranges below 0.002 give zeros. Only unsigned integers saturate at 0
    where the original refuses a tensor with negative values.

    Args:
        x: any shape, any floating type.
        amax: ``()`` or ``(x.shape[axis],)``, not negative; float32, or the type of ``x``.
        qmin: lowest integer.
        qmax: highest integer, which amax maps to.
        axis: the axis of ``x`` that keeps its own range; None per tensor.

    Returns:
        The shape and type of ``x``.
    """
    result: Tensor = _ByAmax.apply(x, spread(amax, x, axis, None), qmin, qmax)  # type: ignore[no-untyped-call]
    return result


def value_range(x: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """The lowest and the highest value for every scale of ``spec``, in float32, shape ``spec.scale_shape(x.shape)``."""
    x = x.detach().to(torch.float32)
    if spec.group is not None:
        size = min(spec.group, x.shape[-1])
        groups = -(-x.shape[-1] // size)
        # Zeros are in every range that quantization uses.
        x = torch.nn.functional.pad(x, (0, groups * size - x.shape[-1]))
        x = x.reshape(*x.shape[:-1], groups, size)
        return x.amin(-1), x.amax(-1)
    if isinstance(spec.granularity, PerToken):
        return x.amin(-1, keepdim=True), x.amax(-1, keepdim=True)
    others = [i for i in range(x.dim()) if spec.axis is None or i != spec.axis % x.dim()]
    return (x.amin(others), x.amax(others)) if others else (x, x)


def grid(lower: Tensor, upper: Tensor, spec: QuantSpec) -> tuple[Tensor, Tensor]:
    """:func:`scale_and_zero_point` as ``spec`` wants them; bounds of a symmetric one are ``-amax`` and ``amax``."""
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
