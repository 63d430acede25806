"""Store activations in uint8, which the integer products of x86 CPUs take."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.onnx.passes.graph import constant, initializer, is_op, only_consumer

__all__ = ["UnsignedActivationsPass", "store_as"]


class UnsignedActivationsPass(ir.passes.InPlacePass):
    """Add 128 to integers and zero point. The values that they stand for stay the same.

    Case 1: ``QuantizeLinear(int8)`` of a computed tensor that only DequantizeLinear nodes with the same parameters
    read: all of them change to uint8 with ``zero_point + 128``.
    Case 2: The same with a Clip of fewer bits or a narrow range between: its bounds are shifted as well.
    Case 3: Anything else reads the integers, for example a graph output, or the tensor is stored: nothing changes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Shift every quantizer of case 1 or 2."""
        modified = False
        for node in model.graph:
            if is_op(node, "QuantizeLinear"):
                modified |= store_as(model.graph, node, np.uint8)
        return ir.passes.PassResult(model, modified)


def store_as(graph: ir.Graph, quantize: ir.Node, dtype: type[np.uint8 | np.int8]) -> bool:
    """Store the integers of ``quantize`` in the other 8-bit type, shifted by 128.

    Args:
        graph: The graph.
        quantize: A QuantizeLinear node.
        dtype: The type to change to, ``np.uint8`` or ``np.int8``.

    Returns:
        Whether anything changed.
    """
    zero_point = constant(quantize.inputs[2]) if len(quantize.inputs) > 2 else None
    other = np.int8 if dtype is np.uint8 else np.uint8
    if zero_point is None or zero_point.dtype != other or constant(quantize.inputs[0]) is not None:
        return False  # case 3
    clip = only_consumer(quantize.outputs[0], "Clip")
    limits = [] if clip is None else [constant(value) for value in clip.inputs[1:]]
    q = (quantize if clip is None else clip).outputs[0]
    readers = [use.node for use in q.uses()]
    same = all(is_op(reader, "DequantizeLinear") and quantize.inputs[2] in reader.inputs[2:] for reader in readers)
    if not same or q.is_graph_output() or any(limit is None for limit in limits):
        return False  # case 3
    shifted = initializer(graph, f"{quantize.name}_zero_point", _shift(zero_point, dtype))
    for node in (quantize, *readers):
        node.replace_input_with(2, shifted)
    if clip is not None:  # case 2
        for index, limit in enumerate(limits, start=1):
            assert limit is not None
            clip.replace_input_with(index, initializer(graph, f"{clip.name}_bound_{index}", _shift(limit, dtype)))
        quantize.outputs[0].dtype = ir.DataType.from_numpy(np.dtype(dtype))
    q.dtype = ir.DataType.from_numpy(np.dtype(dtype))
    return True


def _shift(array: np.ndarray, dtype: type[np.uint8 | np.int8]) -> np.ndarray:
    return (array.astype(np.int16) + (128 if dtype is np.uint8 else -128)).astype(dtype)
