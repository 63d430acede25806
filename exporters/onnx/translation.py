"""Translate the fake-quantize operators to ONNX's QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from onnxscript import opset18 as op
from onnxscript import opset19, opset21

import qdq.quantization.operators  # noqa: F401 (registers the operators)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["BLOCKS_SINCE", "FLOAT8_SINCE", "translations"]

BLOCKS_SINCE = 21
"""The first opset with one scale for each group of values."""

FLOAT8_SINCE = 19
"""The first opset that quantizes to float8."""

_FULL_RANGE = {(-128, 127): ir.DataType.INT8, (0, 255): ir.DataType.UINT8}
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_TINY = float(torch.finfo(torch.float32).tiny)


def _fake_quantize(
    x: Any, scale: Any, zero_point: Any, qmin: int, qmax: int, axis: int | None = None, group: int | None = None
) -> Any:
    """Translate a quantizer with a static range.

    Case 1: The integers use the whole range of int8 or uint8.
    Case 2: Fewer bits or a narrow range: the integers are clipped.
    Case 3: A scale for each group on the last axis of a matrix.
    Case 4: Half precision, in which the scale must be as well.
    """
    dtype = ir.DataType.INT8 if qmin < 0 else ir.DataType.UINT8
    zero_point = op.Cast(zero_point, to=int(dtype))
    along: dict[str, int] = {} if axis is None else {"axis": axis}
    if group is not None:  # case 3
        along = {"axis": 1, "block_size": group}
    opset = op if group is None else opset21
    if x.dtype in _HALF:  # case 4
        scale = op.Cast(scale, to=int(x.dtype))
        opset = opset19 if group is None else opset21
    q = _clipped(opset.QuantizeLinear(x, scale, zero_point, **along), qmin, qmax)
    return opset.DequantizeLinear(q, scale, zero_point, **along)


def _fake_quantize_float8(x: Any, scale: Any, zero_point: Any, axis: int | None = None) -> Any:
    """Translate a float8 quantizer. The zero point gives the type, and ONNX saturates by default.

    Half precision is handled as in case 4 of :func:`_fake_quantize`.
    """
    zero_point = op.Cast(zero_point, to=int(ir.DataType.FLOAT8E4M3FN))
    along: dict[str, int] = {} if axis is None else {"axis": axis}
    if x.dtype in _HALF:
        scale = op.Cast(scale, to=int(x.dtype))
    q = opset19.QuantizeLinear(x, scale, zero_point, **along)
    return opset19.DequantizeLinear(q, scale, zero_point, **along)


def _dynamic_fake_quantize(x: Any, qmin: int, qmax: int, symmetric: bool, per_token: bool) -> Any:
    """Translate a quantizer that takes its range from the tensor itself.

    Case 1: Affine uint8 with one scale: ONNX has an operator for it.
    Case 2: Anything else with one scale: the range is computed by single operators.
    Case 3: A scale per token, which QuantizeLinear does not have: division, rounding and multiplication.
    """
    if (qmin, qmax) == (0, 255) and not symmetric and not per_token:  # case 1
        q, scale, zero_point = op.DynamicQuantizeLinear(x)
        return op.DequantizeLinear(q, scale, zero_point)
    over = {"keepdims": int(per_token)}
    axes = [op.Constant(value_ints=[-1])] if per_token else []
    lowest, highest = op.Constant(value_float=float(qmin)), op.Constant(value_float=float(qmax))
    if symmetric:
        middle = 0 if qmin < 0 else (qmax + 1) // 2
        scale = op.Div(op.ReduceMax(op.Abs(x), *axes, **over), op.Constant(value_float=float(qmax - middle)))
        scale = _not_zero(scale)
        zero = op.Constant(value_float=float(middle))
    else:
        nothing = op.Constant(value_float=0.0)
        lower = op.Min(op.ReduceMin(x, *axes, **over), nothing)
        upper = op.Max(op.ReduceMax(x, *axes, **over), nothing)
        scale = _not_zero(op.Div(op.Sub(upper, lower), op.Constant(value_float=float(qmax - qmin))))
        zero = op.Clip(op.Round(op.Sub(lowest, op.Div(lower, scale))), lowest, highest)
    if per_token:  # case 3
        q = op.Clip(op.Add(op.Round(op.Div(x, scale)), zero), lowest, highest)
        return op.Mul(op.Sub(q, zero), scale)
    zero_point = op.Cast(zero, to=int(ir.DataType.INT8 if qmin < 0 else ir.DataType.UINT8))
    return op.DequantizeLinear(_clipped(op.QuantizeLinear(x, scale, zero_point), qmin, qmax), scale, zero_point)


def _not_zero(scale: Any) -> Any:
    """Replace the scale of a range of width 0 by 1."""
    return op.Where(op.Less(scale, op.Constant(value_float=_TINY)), op.Constant(value_float=1.0), scale)


def _clipped(q: Any, qmin: int, qmax: int) -> Any:
    if (qmin, qmax) in _FULL_RANGE:
        return q
    dtype = ir.DataType.INT8 if qmin < 0 else ir.DataType.UINT8
    return op.Clip(q, *[op.Cast(op.Constant(value_int=bound), to=int(dtype)) for bound in (qmin, qmax)])


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return the table for ``torch.onnx.export(custom_translation_table=...)``."""
    return {
        torch.ops.qdq.fake_quantize.default: _fake_quantize,
        torch.ops.qdq.fake_quantize_float8.default: _fake_quantize_float8,
        torch.ops.qdq.dynamic_fake_quantize.default: _dynamic_fake_quantize,
    }
