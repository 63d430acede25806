"""Store the weights of linear layers transposed, as the products read them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from exporters.onnx.passes.graph import constant, initializer, is_op, producer

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["TransposeWeightsPass"]


class TransposeWeightsPass(ir.passes.InPlacePass):
    """Fold the Transpose of an integer weight into the stored weight.

    Case 1: ``W (out, in) -> DequantizeLinear(axis) -> Transpose`` becomes ``W.T (in, out) -> DequantizeLinear(perm of
    axis)``.
    Case 2: Other nodes read the weight, for example those of a tied embedding: nothing changes, so that the weight is
    stored once.
    Case 3: A scale for each block of values: scales and zero points are matrices then, and are transposed as well.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold every Transpose of case 1 or 3."""
        modified = False
        for node in list(model.graph):
            if is_op(node, "Transpose"):
                modified |= _try_fold(model.graph, node)
        return ir.passes.PassResult(model, modified)


def _try_fold(graph: ir.Graph, transpose: ir.Node) -> bool:
    dequantize = producer(transpose.inputs[0], "DequantizeLinear")
    if dequantize is None or len(dequantize.outputs[0].uses()) != 1:
        return False
    weight = dequantize.inputs[0]
    array = constant(weight)
    if weight is None or array is None or len(weight.uses()) != 1:
        return False  # case 2
    perm = transpose.attributes.get_ints("perm", tuple(reversed(range(array.ndim))))
    stored = initializer(graph, f"{weight.name}_transposed", np.ascontiguousarray(array.transpose(perm)))
    scales = constant(dequantize.inputs[1])
    attributes, grid = {}, list(dequantize.inputs[1:])
    if block := dequantize.attributes.get_int("block_size", 0):  # case 3
        attributes["block_size"] = block
        grid = [_transposed(graph, value, perm) for value in grid]
    if scales is None or scales.ndim:
        attributes["axis"] = list(perm).index(dequantize.attributes.get_int("axis", 1) % array.ndim)
    replacement = ir.node("DequantizeLinear", [stored, *grid], attributes, name=dequantize.name)
    replacement.outputs[0].name = dequantize.outputs[0].name
    graph.insert_before(transpose, replacement)
    transpose.outputs[0].replace_all_uses_with(replacement.outputs[0])
    graph.remove([transpose, dequantize], safe=True)
    del graph.initializers[str(weight.name)]
    return True


def _transposed(graph: ir.Graph, value: ir.Value | None, perm: Sequence[int]) -> ir.Value:
    array = constant(value)
    assert value is not None
    assert array is not None, "the grid of a stored weight is constant"
    return initializer(graph, f"{value.name}_transposed", np.ascontiguousarray(array.transpose(perm)))
