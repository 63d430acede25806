"""Store weights on which CPUs without VNNI would saturate in uint8."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.onnx.passes.graph import constant, initializer, is_op, producer
from exporters.onnx.passes.integer_gemm import may_saturate

__all__ = ["UnsignedWeightsPass", "store_unsigned"]


class UnsignedWeightsPass(ir.passes.InPlacePass):
    """Add 128 to integers and zero points. For uint8 weights the kernels are exact on every CPU.

    Case 1: An int8 weight ``(in, out)`` of a product on which sums of pairs could saturate in 16 bits, because
    ``QuantSpec.overflow_safe`` is off; or a table ``(out, in)`` that the product reads transposed, which is shifted for
    all of its readers.
    Case 2: No pair can saturate: nothing changes, because int8 is faster.
    Case 3: Anything else: nothing changes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Shift every weight of case 1."""
        modified = False
        for node in list(model.graph):
            if is_op(node, "MatMul", "Gemm"):
                modified |= _try_shift(model.graph, node)
        return ir.passes.PassResult(model, modified)


def _try_shift(graph: ir.Graph, product: ir.Node) -> bool:
    x, w = (producer(value, "DequantizeLinear") for value in product.inputs[:2])
    transpose = producer(product.inputs[1], "Transpose")
    w = producer(transpose.inputs[0], "DequantizeLinear") if transpose is not None else w
    if x is None or w is None or len(w.inputs) < 3:
        return False  # case 3
    weight, zeros = constant(w.inputs[0]), constant(w.inputs[2])
    if weight is None or zeros is None or weight.dtype != np.int8 or weight.ndim != 2:
        return False  # case 3
    is_turned = transpose is not None or bool(product.attributes.get_int("transB", 0))
    if not may_saturate(weight.T if is_turned else weight):
        return False  # case 2
    store_unsigned(graph, w, weight, zeros)  # case 1
    return True


def store_unsigned(graph: ir.Graph, dequantize: ir.Node, integers: np.ndarray, zeros: np.ndarray) -> None:
    """Store the int8 ``integers`` and ``zeros`` that ``dequantize`` reads in uint8, shifted by 128."""
    for index, array in ((0, integers), (2, zeros)):
        value = dequantize.inputs[index]
        assert value is not None
        shifted = (array.astype(np.int16) + 128).astype(np.uint8)
        dequantize.replace_input_with(index, initializer(graph, f"{value.name}_unsigned", shifted))
