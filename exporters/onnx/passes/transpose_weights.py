"""Store the weights of linear layers the way the products read them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.onnx.passes.graph import constant, initializer, is_op, producer

__all__ = ["TransposeWeightsPass"]


class TransposeWeightsPass(ir.passes.InPlacePass):
    """Fold the transposition of an integer weight into the stored weight.

    Case 1: ``W (out, in) -> DequantizeLinear(axis) -> Transpose`` becomes ``W.T (in, out) -> DequantizeLinear(perm of
    axis)``.
    Case 2: other readers need the weight as it was, a tied embedding say: left alone, the weight is stored once.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fold."""
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
    attributes = {}
    if scales is None or scales.ndim:
        attributes["axis"] = list(perm).index(dequantize.attributes.get_int("axis", 1) % array.ndim)
    replacement = ir.node("DequantizeLinear", [stored, *dequantize.inputs[1:]], attributes, name=dequantize.name)
    replacement.outputs[0].name = dequantize.outputs[0].name
    graph.insert_before(transpose, replacement)
    transpose.outputs[0].replace_all_uses_with(replacement.outputs[0])
    graph.remove([transpose, dequantize], safe=True)
    del graph.initializers[str(weight.name)]
    return True
