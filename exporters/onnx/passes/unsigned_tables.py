"""Store a table in uint8 if the kernels of a product that shares it need that."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.onnx.isa import ANY, Isa
from exporters.onnx.passes.graph import constant, is_op, producer
from exporters.onnx.passes.integer_gemm import may_saturate
from exporters.onnx.passes.unsigned_weights import store_unsigned
from exporters.onnx.passes.weight_only_gemm import block_of

__all__ = ["UnsignedTablesPass"]


class UnsignedTablesPass(ir.passes.InPlacePass):
    """Add 128 to integers and zero points of ``DequantizeLinear(W)`` that a look-up and a transposed product share.

    The table stays one for all of its readers.

    Case 1: The activations of the product are integers, and a CPU without VNNI could saturate on the weight.
    Case 2: The activations are float: the weight-only product takes uint8 if its blocks divide the rows.
    Case 3: Zero points that are not 0, a table without a look-up or without a product, or anything else: nothing
    changes.

    Args:
        isa: Instruction set of the CPUs that the file is for.
    """

    def __init__(self, isa: Isa = ANY) -> None:
        super().__init__()
        self._isa = isa

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Shift every table of case 1 or 2."""
        modified = False
        for node in list(model.graph):
            if is_op(node, "DequantizeLinear") and len(node.inputs) > 2:
                modified |= self._try_shift(model.graph, node)
        return ir.passes.PassResult(model, modified)

    def _try_shift(self, graph: ir.Graph, dequantize: ir.Node) -> bool:
        readers = [use.node for use in dequantize.outputs[0].uses()]
        products = [
            use.node
            for reader in readers
            if is_op(reader, "Transpose")
            for use in reader.outputs[0].uses()
            if is_op(use.node, "MatMul") and use.idx == 1
        ]
        if not products or not any(is_op(reader, "Gather") for reader in readers):
            return False  # case 3
        table, zeros = constant(dequantize.inputs[0]), constant(dequantize.inputs[2])
        if table is None or zeros is None or table.dtype != np.int8 or table.ndim != 2 or zeros.any():
            return False  # case 3
        integers = [producer(product.inputs[0], "DequantizeLinear") is not None for product in products]
        if not (all(integers) and self._isa.saturates and may_saturate(table.T)) and not (  # case 1
            not any(integers) and block_of(table.shape[1])  # case 2
        ):
            return False
        store_unsigned(graph, dequantize, table, zeros)
        return True
