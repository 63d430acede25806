"""Fold the quantizers of weights: store the weights as integers."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from exporters.onnx.passes.graph import constant, initializer, is_op, only_consumer, producer
from qdq.quantization.spec import FLOAT8_MAX

__all__ = ["FoldWeightsPass"]


class FoldWeightsPass(ir.passes.InPlacePass):
    """Replace a quantized constant by its integers. The DequantizeLinear that follows stays.

    Case 1: ``W -> QuantizeLinear -> ...`` becomes ``W_quantized -> ...``.
    Case 2: ``W -> QuantizeLinear -> Clip -> ...`` (fewer bits, narrow range): the Clip is folded as well.
    Case 3: The input is computed, an activation: nothing changes.
    Case 4: The zero point or the scale is a Cast of a constant that was too long for torch's exporter to fold: it
    becomes a constant.
    Case 5: A scale for each block of ``block_size`` values on the axis; the last block may be shorter.
    Case 6: Half precision: the weight is divided by the scale in float32, as the operator does.
    Case 7: Float8: the weight is rounded to float8 numbers and saturated.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold every quantized constant."""
        modified = False
        for node in list(model.graph):
            if is_op(node, "QuantizeLinear"):
                modified |= _try_fold(model.graph, node)
        return ir.passes.PassResult(model, modified)


def _try_fold(graph: ir.Graph, node: ir.Node) -> bool:
    if len(node.inputs) < 3:
        return False
    casts = [cast for value in node.inputs[1:3] if (cast := producer(value, "Cast")) is not None]
    modified = sum(_try_fold_cast(graph, cast) for cast in casts) > 0  # case 4
    weight, scale, zero_point = (constant(value) for value in node.inputs[:3])
    if weight is None or scale is None or zero_point is None:
        return modified  # case 3
    weight, scale = (array.astype(np.float32, copy=False) for array in (weight, scale))  # case 6
    axis = node.attributes.get_int("axis", 1)
    float8 = ir.DataType.from_numpy(zero_point.dtype) is ir.DataType.FLOAT8E4M3FN
    low, high = (-FLOAT8_MAX, FLOAT8_MAX) if float8 else _limits(zero_point.dtype)
    last = node
    clip = only_consumer(node.outputs[0], "Clip")
    if clip is not None:
        limits = [constant(value) for value in clip.inputs[1:3]]
        if any(limit is None for limit in limits):
            return modified
        low, high = (int(limit) for limit in limits if limit is not None)
        last = clip  # case 2
    block = node.attributes.get_int("block_size", 0)
    if block:  # case 5
        scale, zero_point = (_spread(array, block, axis, weight.shape) for array in (scale, zero_point))
    elif scale.ndim:
        shape = [1] * weight.ndim
        shape[axis] = -1
        scale, zero_point = scale.reshape(shape), zero_point.reshape(shape)
    steps = weight / scale
    if not float8:  # case 7: the cast rounds
        steps = np.rint(steps) + zero_point.astype(np.float32)  # rounds half to even, as QuantizeLinear does
    array = np.clip(steps, low, high).astype(zero_point.dtype)
    source = node.inputs[0]
    assert source is not None
    folded = initializer(graph, f"{source.name}_quantized", array)
    last.outputs[0].replace_all_uses_with(folded)
    for old in ([clip] if clip is not None else []) + [node]:
        graph.remove(old, safe=True)
    return True


def _limits(dtype: np.dtype[Any]) -> tuple[int, int]:
    bounds = np.iinfo(dtype)
    return int(bounds.min), int(bounds.max)


def _spread(array: np.ndarray, block: int, axis: int, shape: tuple[int, ...]) -> np.ndarray:
    """Repeat the value of every block for each of its members."""
    return np.repeat(array, block, axis=axis).take(range(shape[axis]), axis=axis)


def _try_fold_cast(graph: ir.Graph, cast: ir.Node) -> bool:
    source = constant(cast.inputs[0])
    if source is None:
        return False
    array = source.astype(ir.DataType(cast.attributes.get_int("to", 0)).numpy())
    cast.outputs[0].replace_all_uses_with(initializer(graph, f"{cast.name}_folded", array))
    graph.remove(cast, safe=True)
    return True
