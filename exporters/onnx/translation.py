"""How the exporter writes the fake-quantize operator: as ONNX's QuantizeLinear and DequantizeLinear."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import onnx_ir as ir
import torch
from onnxscript import opset18 as op

import qdq.functional  # noqa: F401 (registers the operator)

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["translations"]

_FULL_RANGE = {(-128, 127): ir.DataType.INT8, (0, 255): ir.DataType.UINT8}


def _fake_quantize(x: Any, scale: Any, zero_point: Any, qmin: int, qmax: int, axis: int | None = None) -> Any:
    """Case 1: the integers fill int8 or uint8. Case 2: fewer bits or a narrow range, clipped as integers."""
    dtype = ir.DataType.INT8 if qmin < 0 else ir.DataType.UINT8
    zero_point = op.Cast(zero_point, to=int(dtype))
    along = {} if axis is None else {"axis": axis}
    q = op.QuantizeLinear(x, scale, zero_point, **along)
    if (qmin, qmax) not in _FULL_RANGE:  # case 2
        bounds = [op.Cast(op.Constant(value_int=bound), to=int(dtype)) for bound in (qmin, qmax)]
        q = op.Clip(q, *bounds)
    return op.DequantizeLinear(q, scale, zero_point, **along)


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For ``torch.onnx.export(custom_translation_table=...)``."""
    return {torch.ops.qdq.fake_quantize.default: _fake_quantize}
