"""Let a product read an integer table that other nodes read as well, without a second copy in the file."""

from __future__ import annotations

import onnx_ir as ir

from exporters.onnx.passes.graph import constant, is_op, producer

__all__ = ["TransposeBeforeDequantizePass"]


class TransposeBeforeDequantizePass(ir.passes.InPlacePass):
    """Move the Transpose of a stored integer weight in front of its DequantizeLinear.

    A word embedding that is also the weight of the linear layer to the vocabulary is stored once, with a row for each
    word. The product reads it transposed, and the runtime transposes the integers once, when it loads the file.

    Case 1: ``DequantizeLinear(W) -> Transpose`` with one scale, or one for each row or column, and other readers of W:
    becomes ``Transpose(W) -> DequantizeLinear``.
    Case 2: Nothing else reads W: nothing changes, because another pass stores it transposed.
    Case 3: A scale for each block, or a computed tensor: nothing changes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Move every Transpose of case 1."""
        modified = False
        for node in list(model.graph):
            if is_op(node, "Transpose"):
                modified |= _try_move(model.graph, node)
        return ir.passes.PassResult(model, modified)


def _try_move(graph: ir.Graph, transpose: ir.Node) -> bool:
    dequantize = producer(transpose.inputs[0], "DequantizeLinear")
    if dequantize is None or "block_size" in dequantize.attributes:
        return False  # case 3
    weight, scales = dequantize.inputs[0], constant(dequantize.inputs[1])
    array = constant(weight)
    if weight is None or array is None or scales is None:
        return False  # case 3
    if len(weight.uses()) == 1 and len(dequantize.outputs[0].uses()) == 1:
        return False  # case 2
    perm = transpose.attributes.get_ints("perm", tuple(reversed(range(array.ndim))))
    attributes = {}
    if scales.ndim:
        attributes["axis"] = list(perm).index(dequantize.attributes.get_int("axis", 1) % array.ndim)
    old = transpose.outputs[0]
    moved = ir.node("Transpose", [weight], {"perm": perm}, name=f"{transpose.name}_integers")
    moved.outputs[0].name = f"{moved.name}_output_0"
    moved.outputs[0].type, moved.outputs[0].shape = weight.type, old.shape
    replacement = ir.node("DequantizeLinear", [moved.outputs[0], *dequantize.inputs[1:]], attributes)
    replacement.name = f"{transpose.name}/DequantizeLinear"
    result = replacement.outputs[0]
    result.name, result.type, result.shape = f"{replacement.name}_output_0", old.type, old.shape
    graph.insert_before(transpose, [moved, replacement])
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(transpose, safe=True)
    if not dequantize.outputs[0].uses():
        graph.remove(dequantize, safe=True)
    return True
