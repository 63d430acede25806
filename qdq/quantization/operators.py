"""Fake quantization with gradients, as registered operators.

Evaluation, training and export call the same operators, so that an exported graph has one node for each quantizer and
ONNX Runtime computes the same integers. :mod:`qdq.quantization.functional` has the arithmetic.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from qdq.quantization.functional import expand_parameter, quantize_float8, rounded_steps, scale_and_zero_point

if TYPE_CHECKING:
    from collections.abc import Callable

    from qdq.quantization.spec import QuantSpec

__all__ = [
    "dynamic_fake_quantize",
    "fake_quantize",
    "fake_quantize_by_amax",
    "fake_quantize_by_spec",
    "fake_quantize_float8",
    "scale_gradient",
]

# The largest magnitude that still rounds to 448: half of the next step, a tie that goes to the even number.
_FLOAT8_BOUND = 464

# The operators are defined step by step: torch.library.custom_op needs one call, but makes each use of the operator
# three times as slow (80 us against 25).
_LIBRARY = torch.library.Library("qdq", "FRAGMENT")  # type: ignore[no-untyped-call]
_ARGUMENTS = "Tensor x, Tensor scale, Tensor zero_point, int qmin, int qmax, int? axis, int? group=None"


def _operator(
    name: str, arguments: str, *, dtype: torch.dtype | None = None
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Register a function as the operator ``qdq::name`` for all devices, and return the operator.

    Args:
        name: The name of the operator.
        arguments: Its arguments, in the language of operator schemas. The first one is ``x``.
        dtype: The type of the result, a new tensor like ``x``; None for the type of ``x``.
    """

    def register(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        schema = f"{name}({arguments}) -> Tensor"
        _LIBRARY.define(schema, tags=(torch.Tag.pt2_compliant_tag,))  # type: ignore[no-untyped-call]
        _LIBRARY.impl(name, function, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
        torch.library.register_fake(f"qdq::{name}", lambda x, *_, **__: torch.empty_like(x, dtype=dtype), lib=_LIBRARY)
        operator: Callable[..., Tensor] = getattr(torch.ops.qdq, name).default
        return operator

    return register


# Integers


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
    """Quantize and dequantize ``x``.

    The gradient passes straight through where the integer lies within ``[qmin, qmax]`` and is zero elsewhere
    (Bengio et al. 2013, arXiv 1308.3432). If the scale requires a gradient, both gradients are those of LSQ (Esser et
    al. 2020, arXiv 1902.08153), without its normalisation; see :func:`scale_gradient`.

    Args:
        x: A tensor of any shape and any floating type.
        scale: As for :func:`qdq.quantization.functional.quantize`.
        zero_point: int32, of the shape of ``scale``.
        qmin: The lowest integer.
        qmax: The highest integer.
        axis: The axis of ``x`` that keeps its own scales; None for one scale for the tensor.
        group: The number of neighbors on the last axis that share a scale; None if they do not.

    Returns:
        The values that the integers represent, of the shape and type of ``x``.
    """
    return _fake_quantize(x, scale, zero_point, qmin, qmax, axis, group)


@_operator("fake_quantize", _ARGUMENTS)
def _fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int | None, group: int | None = None
) -> Tensor:
    step = expand_parameter(scale, x, axis, group)
    # Saturating the steps instead of the integers saves two passes over memory: adding and subtracting the zero point.
    low, high = _step_bounds(zero_point, x, qmin, qmax, axis, group) if x.numel() else (0, 0)
    return rounded_steps(x, step).clamp_(low, high).mul_(step).to(x.dtype)


@_operator("is_inside", _ARGUMENTS, dtype=torch.int8)
def _is_inside(
    x: Tensor, scale: Tensor, zero_point: Tensor, qmin: int, qmax: int, axis: int | None, group: int | None = None
) -> Tensor:
    """Return 1 where the integer needs no saturation, else 0.

    The mask is int8 because torch compares and stores bytes much faster than bools.
    """
    low, high = _step_bounds(zero_point, x, qmin, qmax, axis, group) if x.numel() else (0, 0)
    q = rounded_steps(x, expand_parameter(scale, x, axis, group))
    return q.clamp(low, high).eq_(q).to(torch.int8)


def _step_bounds(zero_point: Tensor, x: Tensor, qmin: int, qmax: int, axis: int | None, group: int | None) -> Any:
    """Return the lowest and the highest number of steps from 0: two numbers if one pair serves the whole tensor."""
    if zero_point.device.type == "cpu":  # On other devices, reading a value would wait for all queued work.
        if zero_point.dim() == 0:
            only = int(zero_point)
            return qmin - only, qmax - only
        if not zero_point.any():
            return qmin, qmax
    zero = expand_parameter(zero_point, x, axis, group)
    return (qmin - zero).to(torch.float32), (qmax - zero).to(torch.float32)


# Gradients of fake_quantize
#
# Storing a mask of what saturates costs a pass over memory in every forward. Where a cheap test in the backward pass
# can tell that nothing saturates, `x` itself is saved instead, which is in memory anyway.


def _save_for_gradients(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, scale, zero_point, qmin, qmax, axis, group = inputs
    ctx.learned = ctx.needs_input_grad[1]
    ctx.without_mask = not ctx.learned and _needs_no_mask(x, scale, axis)
    if ctx.learned or ctx.without_mask:
        ctx.settings = qmin, qmax, axis, group
        ctx.save_for_backward(x, scale, zero_point)
    else:
        ctx.save_for_backward(_is_inside(x.detach(), scale, zero_point, qmin, qmax, axis, group))


def _needs_no_mask(x: Tensor, scale: Tensor, axis: int | None) -> bool:
    """Return whether the backward pass can tell cheaply what saturates.

    1. One scale for the tensor: ``x`` is compared with two bounds.
    2. A weight with one scale for each channel and zero points of 0: nothing saturates as long as the scales follow
       the weight, which the largest magnitude of each channel tells.

    Other devices than the CPU would have to wait for the values.
    """
    # Graphs are traced with tensors of other types.
    if x.device.type != "cpu" or x.dtype != torch.float32 or type(x) not in (Tensor, torch.nn.Parameter):
        return False
    if type(scale) is not Tensor or torch.compiler.is_compiling():
        return False
    return scale.dim() == 0 or (scale.dim() == 1 and axis is not None and isinstance(x, torch.nn.Parameter))


def _gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    """Return the gradients: straight through inside the range, or those of LSQ (its equations 3 and 5)."""
    if ctx.without_mask:
        return _gradient_without_mask(gradient, *ctx.saved_tensors, *ctx.settings), *[None] * 6
    if not ctx.learned:
        (inside,) = ctx.saved_tensors
        return gradient * inside.to(gradient.dtype), *[None] * 6
    x, scale, zero_point = ctx.saved_tensors
    qmin, qmax, axis, group = ctx.settings
    x = x.to(torch.float32)
    zero = expand_parameter(zero_point, x, axis, group)
    steps = x / expand_parameter(scale, x, axis, group)
    low, high = (qmin - zero).float(), (qmax - zero).float()
    # LSQ compares the value, not its integer, with the bounds: a value less than half a step beyond one is outside too.
    inside = ((low < steps) & (steps < high)).to(torch.float32)
    saturated = torch.minimum(torch.maximum(steps.round(), low), high)
    slope = gradient.to(torch.float32) * (saturated - inside * steps)
    # The scale was broadcast, so its gradient is a sum.
    to_scale = slope.sum_to_size(expand_parameter(scale, x, axis, group).shape).reshape(scale.shape)
    return gradient * inside.to(gradient.dtype), to_scale, *[None] * 5


def _gradient_without_mask(
    gradient: Tensor,
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    qmin: int,
    qmax: int,
    axis: int | None,
    group: int | None,
) -> Tensor:
    """Return the gradient where ``x`` needs no saturation, zero elsewhere; see :func:`_needs_no_mask`."""
    if scale.dim() == 0:  # case 1
        if not x.numel():
            return gradient
        low, high = _first_outside(float(scale), int(zero_point), qmin, qmax)
        least, most = (float(end) for end in torch.aminmax(x))
        if low < least and most < high:
            return gradient
        if not math.isnan(least):  # hardtanh would pass a gradient to NaN, which must not get one
            passed: Tensor = torch.ops.aten.hardtanh_backward(gradient, x, low, high)
            return passed
    elif axis is not None and not zero_point.any():  # case 2
        others = [i for i in range(x.dim()) if i != axis % x.dim()]
        reach = torch.linalg.vector_norm(x, torch.inf, others)
        # 0.49 instead of 0.5 keeps a distance from the tie, so that the rounding of this comparison does not matter.
        if bool((reach <= scale * (min(-qmin, qmax) + 0.49)).all()):
            return gradient
    return gradient * _is_inside(x, scale, zero_point, qmin, qmax, axis, group).to(gradient.dtype)


def _first_outside(scale: float, zero_point: int, qmin: int, qmax: int) -> tuple[float, float]:
    """Return the float32 numbers just below and just above those that round to integers from ``qmin`` to ``qmax``."""
    step = np.float32(scale)
    bounds = []
    for end, away in ((qmin - zero_point, -1), (qmax - zero_point, 1)):
        beyond = np.float32(away * np.inf)
        with np.errstate(over="ignore"):  # An overflow means that no number lies outside.
            bound = np.float32((end + 0.5 * away) * scale)
        # The product is rounded, so move to the exact bound in single steps of float32.
        while (np.rint(bound / step) - end) * away > 0:  # too far out
            bound = np.nextafter(bound, -beyond)
        while (np.rint(bound / step) - end) * away <= 0:  # still inside
            bound = np.nextafter(bound, beyond)
        bounds.append(float(bound))
    return bounds[0], bounds[1]


torch.library.register_autograd("qdq::fake_quantize", _gradients, setup_context=_save_for_gradients, lib=_LIBRARY)


class _ScaledGradient(torch.autograd.Function):
    """The identity, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, multiplier: float) -> Tensor:
        ctx.multiplier = multiplier
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient * ctx.multiplier, None


def scale_gradient(scale: Tensor, *, count: int, qmax: int) -> Tensor:
    """Return ``scale`` unchanged, with its gradient multiplied by ``1 / sqrt(count * qmax)`` as in LSQ (section 2.2).

    The normalisation balances the updates of scales and weights.

    Args:
        scale: A scale that is trained.
        count: The number of values that each scale serves: weights of a layer or channel, or features of one sample.
        qmax: The highest integer.
    """
    scaled: Tensor = _ScaledGradient.apply(scale, (count * qmax) ** -0.5)  # type: ignore[no-untyped-call]
    return scaled


# float8


def fake_quantize_float8(x: Tensor, scale: Tensor, zero_point: Tensor, *, axis: int | None = None) -> Tensor:
    """Quantize ``x`` to float8e4m3fn and back.

    The gradient passes straight through where nothing saturates.

    Args:
        x: A tensor of any shape and any floating type.
        scale: As for :func:`qdq.quantization.functional.quantize_float8`.
        zero_point: 0, in the shape of ``scale``. Exported graphs need it, because it names the type.
        axis: The axis of ``x`` that keeps its own scales; None for one scale for the tensor.

    Returns:
        The values that the floats represent, of the shape and type of ``x``.
    """
    return _fake_quantize_float8(x, scale, zero_point, axis)


@_operator("fake_quantize_float8", "Tensor x, Tensor scale, Tensor zero_point, int? axis")
def _fake_quantize_float8(x: Tensor, scale: Tensor, zero_point: Tensor, axis: int | None) -> Tensor:  # noqa: ARG001
    return quantize_float8(x, scale, axis=axis).mul_(expand_parameter(scale, x, axis, None)).to(x.dtype)


def _save_float8_mask(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:  # noqa: ARG001
    x, scale, _, axis = inputs
    x = x.detach() if x.dtype == torch.float32 else x.detach().to(torch.float32)
    ctx.save_for_backward((x / expand_parameter(scale, x, axis, None)).abs().le(_FLOAT8_BOUND).to(torch.int8))


def _float8_gradients(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    (inside,) = ctx.saved_tensors
    return gradient * inside.to(gradient.dtype), None, None, None


torch.library.register_autograd(
    "qdq::fake_quantize_float8", _float8_gradients, setup_context=_save_float8_mask, lib=_LIBRARY
)


# Any spec


def fake_quantize_by_spec(
    x: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec, *, axis: int | None = None
) -> Tensor:
    """Quantize and dequantize ``x`` as ``spec`` says: to integers, or to float8e4m3fn.

    Args:
        x: A tensor of any shape and any floating type.
        scale: The scale of a quantizer of this spec.
        zero_point: Its zero point.
        spec: The integers, or the format float8e4m3fn.
        axis: The axis of ``x`` that keeps its own scales. It differs from the spec's axis if ``x`` is a slice.
    """
    if spec.is_float8:
        return fake_quantize_float8(x, scale, zero_point, axis=axis)
    return fake_quantize(x, scale, zero_point, qmin=spec.qmin, qmax=spec.qmax, axis=axis, group=spec.group)


def dynamic_fake_quantize(x: Tensor, *, qmin: int, qmax: int, symmetric: bool, per_token: bool) -> Tensor:
    """Quantize and dequantize ``x`` with its own range, as one operator for graphs that are exported.

    Args:
        x: A tensor of any shape and any floating type.
        qmin: The lowest integer.
        qmax: The highest integer.
        symmetric: Whether the range is ``[-amax, amax]``.
        per_token: Whether every vector on the last axis has its own range. If not, the tensor has one.
    """
    return _dynamic_fake_quantize(x, qmin, qmax, symmetric, per_token)


@_operator("dynamic_fake_quantize", "Tensor x, int qmin, int qmax, bool symmetric, bool per_token")
def _dynamic_fake_quantize(x: Tensor, qmin: int, qmax: int, symmetric: bool, per_token: bool) -> Tensor:
    lower, upper = (x.amin(-1, True), x.amax(-1, True)) if per_token else torch.aminmax(x)
    if symmetric:
        upper = torch.maximum(lower.abs(), upper.abs())
        lower = -upper
    scale, zero_point = scale_and_zero_point(lower, upper, qmin=qmin, qmax=qmax, symmetric=symmetric)
    return _fake_quantize(x, scale, zero_point, qmin, qmax, None)


# The arithmetic of pytorch-quantization


class _FakeQuantizeByAmax(torch.autograd.Function):
    """The default path of pytorch-quantization, with its gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, amax: Tensor, qmin: int, qmax: int) -> Tensor:
        ctx.save_for_backward((x.abs() <= amax).to(torch.int8))
        # The original computes float16 in float32 but divides in float16; bfloat16 follows torch's type promotion.
        wide = x.to(torch.float32) if x.dtype == torch.float16 else x
        amax = amax.to(torch.float32) if amax.dtype == torch.float16 else amax
        # Divide tensor by tensor: torch computes `number / tensor` as a product with the reciprocal, which can differ
        # by one ulp.
        steps = torch.tensor(float(qmax), device=amax.device) / amax
        is_zero = amax <= 2.0**-24
        q = (wide * torch.where(is_zero, 0.0, steps)).round_().clamp_(qmin, qmax)
        q = q if wide is x else q.to(x.dtype)
        return q.div_(torch.where(is_zero, 1.0, steps).to(x.dtype)).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return torch.where(inside.bool(), gradient, 0), None, None, None


def fake_quantize_by_amax(x: Tensor, amax: Tensor, *, qmin: int, qmax: int, axis: int | None = None) -> Tensor:
    """Quantize and dequantize ``x`` as pytorch-quantization does: ``round(x * s) / s`` with ``s = qmax / amax``.

    The result differs from :func:`fake_quantize` in the last bit, and by a step at rounding ties. A range of 2**-24 or
    less gives zeros. The gradient passes where ``|x| <= amax``.

    The result equals the original's to the bit for the same types, including the weaknesses of half precision: ``s`` is
    rounded to the type of ``x`` before the division, so that in float16 ranges below 0.002 give zeros. There is one
    exception: unsigned integers saturate at 0 where the original refuses a tensor with negative values.

    Args:
        x: A tensor of any shape and any floating type.
        amax: Not negative, of shape ``()`` or ``(x.shape[axis],)``, in float32 or the type of ``x``.
        qmin: The lowest integer.
        qmax: The highest integer, which represents amax.
        axis: The axis of ``x`` that keeps its own ranges; None for one range for the tensor.

    Returns:
        A tensor of the shape and type of ``x``.
    """
    expanded = expand_parameter(amax, x, axis, None)
    result: Tensor = _FakeQuantizeByAmax.apply(x, expanded, qmin, qmax)  # type: ignore[no-untyped-call]
    return result
