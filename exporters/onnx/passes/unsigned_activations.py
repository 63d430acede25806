"""Shift signed activations to unsigned ones, which the integer products of x86 CPUs want."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.onnx.passes.graph import constant, initializer, is_op

__all__ = ["UnsignedActivationsPass"]


class UnsignedActivationsPass(ir.passes.InPlacePass):
    """Add 128 to integers and zero point: the same grid, held in uint8.

    Case 1: ``QuantizeLinear(int8)`` of a computed tensor, read by DequantizeLinear nodes of the same parameters alone:
    all of them change to uint8 with ``zero_point + 128``.
    Case 2: anything else reads the integers (a Clip of fewer bits, a graph output): left alone.
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
    q = quantize.outputs[0]
    readers = [use.node for use in q.uses()]
    if zero_point is None or zero_point.dtype != np.int8 or q.is_graph_output():
        return False
    if not all(is_op(reader, "DequantizeLinear") and reader.inputs[2] is quantize.inputs[2] for reader in readers):
        return False  # case 2
    shifted = (zero_point.astype(np.int16) + 128).astype(np.uint8)
    value = initializer(graph, f"{quantize.name}_zero_point", shifted)
    for node in (quantize, *readers):
        node.replace_input_with(2, value)
    q.dtype = ir.DataType.UINT8
    return True
