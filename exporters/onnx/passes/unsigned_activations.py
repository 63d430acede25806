"""Shift signed activations to unsigned ones, which the integer products of x86 CPUs want."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.onnx.passes.graph import constant, initializer, is_op, only_consumer

__all__ = ["UnsignedActivationsPass"]


class UnsignedActivationsPass(ir.passes.InPlacePass):
    """Add 128 to integers and zero point: the same grid, held in uint8.

    Case 1: ``QuantizeLinear(int8)`` of a computed tensor, read by DequantizeLinear nodes of the same parameters alone:
    all of them change to uint8 with ``zero_point + 128``.
    Case 2: the same with a Clip of fewer bits or a narrow range between: its bounds are shifted too.
    Case 3: anything else reads the integers (a graph output, say), or the tensor is stored: left alone.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Shift."""
        modified = False
        for node in model.graph:
            if is_op(node, "QuantizeLinear"):
                modified |= _try_shift(model.graph, node)
        return ir.passes.PassResult(model, modified)


def _try_shift(graph: ir.Graph, quantize: ir.Node) -> bool:
    zero_point = constant(quantize.inputs[2]) if len(quantize.inputs) > 2 else None
    if zero_point is None or zero_point.dtype != np.int8 or constant(quantize.inputs[0]) is not None:
        return False  # case 3
    clip = only_consumer(quantize.outputs[0], "Clip")
    limits = [] if clip is None else [constant(value) for value in clip.inputs[1:]]
    q = (quantize if clip is None else clip).outputs[0]
    readers = [use.node for use in q.uses()]
    same = all(is_op(reader, "DequantizeLinear") and quantize.inputs[2] in reader.inputs[2:] for reader in readers)
    if not same or q.is_graph_output() or any(limit is None for limit in limits):
        return False  # case 3
    shifted = initializer(graph, f"{quantize.name}_zero_point", _shift(zero_point))
    for node in (quantize, *readers):
        node.replace_input_with(2, shifted)
    if clip is not None:  # case 2
        for index, limit in enumerate(limits, start=1):
            assert limit is not None
            clip.replace_input_with(index, initializer(graph, f"{clip.name}_bound_{index}", _shift(limit)))
        quantize.outputs[0].dtype = ir.DataType.UINT8
    q.dtype = ir.DataType.UINT8
    return True


def _shift(array: np.ndarray) -> np.ndarray:
    return (array.astype(np.int16) + 128).astype(np.uint8)
