"""How the exporter writes the fake-quantize operators: as ONNX's QuantizeLinear and DequantizeLinear."""

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
"""The opset that can write one scale for a group of values."""

FLOAT8_SINCE = 19
"""The opset that can quantize to float8."""

_FULL_RANGE = {(-128, 127): ir.DataType.INT8, (0, 255): ir.DataType.UINT8}
_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_TINY = float(torch.finfo(torch.float32).tiny)


def _fake_quantize(
    x: Any, scale: Any, zero_point: Any, qmin: int, qmax: int, axis: int | None = None, group: int | None = None
) -> Any:
    """A range that is known.

    Case 1: the integers fill int8 or uint8. Case 2: fewer bits or a narrow range, clipped as integers. Case 3: a scale
    for each group on the last axis, of a matrix. Case 4: half precision, which the scale must have as well.
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
    """Floats of 8 bits, which the zero point says; saturation is ONNX's default. Half precision as in case 4."""
    zero_point = op.Cast(zero_point, to=int(ir.DataType.FLOAT8E4M3FN))
    along: dict[str, int] = {} if axis is None else {"axis": axis}
    if x.dtype in _HALF:
        scale = op.Cast(scale, to=int(x.dtype))
    q = opset19.QuantizeLinear(x, scale, zero_point, **along)
    return opset19.DequantizeLinear(q, scale, zero_point, **along)


def _dynamic_fake_quantize(x: Any, qmin: int, qmax: int, symmetric: bool, per_token: bool) -> Any:
    """The range of the tensor itself.

    Case 1: uint8 and affine: ONNX has an operator for it. Case 2: anything else per tensor: the same from parts.
    Case 3: per token: QuantizeLinear has no such scale, so division, rounding and product stand there.
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
    """1 in place of a scale that a range of width zero would give."""
    return op.Where(op.Less(scale, op.Constant(value_float=_TINY)), op.Constant(value_float=1.0), scale)


def _clipped(q: Any, qmin: int, qmax: int) -> Any:
    if (qmin, qmax) in _FULL_RANGE:
        return q
    dtype = ir.DataType.INT8 if qmin < 0 else ir.DataType.UINT8
    return op.Clip(q, *[op.Cast(op.Constant(value_int=bound), to=int(dtype)) for bound in (qmin, qmax)])


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For ``torch.onnx.export(custom_translation_table=...)``."""
    return {
        torch.ops.qdq.fake_quantize.default: _fake_quantize,
        torch.ops.qdq.fake_quantize_float8.default: _fake_quantize_float8,
        torch.ops.qdq.dynamic_fake_quantize.default: _dynamic_fake_quantize,
    }
