"""Store 4-bit weights in half a byte each."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir

from exporters.onnx.passes.graph import constant, initializer, is_op

__all__ = ["FourBitsPass"]

_SINCE = 21
_NARROW = {np.dtype(np.int8): (ml_dtypes.int4, -8, 7), np.dtype(np.uint8): (ml_dtypes.uint4, 0, 15)}


class FourBitsPass(ir.passes.InPlacePass):
    """Store integers in int4 or uint4, two per byte, if all of them and their zero points fit.

    Case 1: A stored int8 or uint8 tensor with one DequantizeLinear and a scale for each block of values.
    Case 2: Values beyond 4 bits, another reader, an opset below 21, or no blocks (an 8-bit tensor whose values happen
    to be small): nothing changes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Store every tensor of case 1 in 4 bits."""
        modified = False
        if model.graph.opset_imports.get("", 0) >= _SINCE:
            for node in model.graph:
                if is_op(node, "DequantizeLinear") and "block_size" in node.attributes:
                    modified |= _try_narrow(model.graph, node)
        return ir.passes.PassResult(model, modified)


def _try_narrow(graph: ir.Graph, node: ir.Node) -> bool:
    data, zeros = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    if data is None or zeros is None or len(data.uses()) != 1:
        return False  # case 2
    arrays = [constant(value) for value in (data, zeros)]
    if any(array is None or array.dtype not in _NARROW for array in arrays):
        return False  # case 2
    kind, low, high = _NARROW[arrays[0].dtype]  # type: ignore[union-attr]
    if any(array.min(initial=0) < low or array.max(initial=0) > high for array in arrays if array is not None):
        return False  # case 2
    # Inputs 0 and 2 of DequantizeLinear are the integers and the zero points; both must have the same type.
    for index, (value, array) in enumerate(zip((data, zeros), arrays, strict=True)):
        assert array is not None
        node.replace_input_with(2 * index, initializer(graph, f"{value.name}_four_bits", array.astype(kind)))
    return True
