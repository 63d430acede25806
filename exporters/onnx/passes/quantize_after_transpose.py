"""Transpose activations before they are quantized."""

from __future__ import annotations

import onnx_ir as ir

from exporters.onnx.passes.graph import constant, is_op, only_consumer, producer

__all__ = ["QuantizeAfterTransposePass"]


class QuantizeAfterTransposePass(ir.passes.InPlacePass):
    """Move a Transpose in front of the quantizer of a computed tensor, so that a product reads DequantizeLinear.

    Runtimes look for a product right behind its DequantizeLinear nodes. Besides, ONNX Runtime (1.31, opset 21 and
    above) moves a DequantizeLinear through a Transpose itself, and then refuses the graph that it made.

    Case 1: ``QuantizeLinear -> DequantizeLinear -> Transpose`` with one scale and no other reader between becomes
    ``Transpose -> QuantizeLinear -> DequantizeLinear``. The new node is named after the quantizer.
    Case 2: The same with a Clip of fewer bits or a narrow range behind the QuantizeLinear.
    Case 3: A scale for each channel, a stored weight, or other readers: nothing changes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Move every Transpose of case 1 or 2."""
        modified = False
        for node in list(model.graph):
            if is_op(node, "Transpose"):
                modified |= _try_move(model.graph, node)
        return ir.passes.PassResult(model, modified)


def _try_move(graph: ir.Graph, transpose: ir.Node) -> bool:
    dequantize = producer(transpose.inputs[0], "DequantizeLinear")
    if dequantize is None:
        return False
    clip = producer(dequantize.inputs[0], "Clip")  # case 2
    quantize = producer(dequantize.inputs[0] if clip is None else clip.inputs[0], "QuantizeLinear")
    if quantize is None:
        return False
    scale = constant(quantize.inputs[1])
    chain = [node.outputs[0] for node in (quantize, clip, dequantize) if node is not None]
    alone = all(only_consumer(value) is not None for value in chain)
    if scale is None or scale.ndim or not alone or constant(quantize.inputs[0]) is not None:
        return False  # case 3
    slot = str(quantize.name).rpartition("/")[0]
    moved = ir.node("Transpose", [quantize.inputs[0]], transpose.attributes, name=f"{slot}/Transpose")
    moved.outputs[0].name = f"{moved.name}_output_0"
    moved.outputs[0].type = None if quantize.inputs[0] is None else quantize.inputs[0].type
    for value in (moved.outputs[0], *chain):
        value.shape = transpose.outputs[0].shape
    if transpose.outputs[0].is_graph_output():
        dequantize.outputs[0].name, dequantize.outputs[0].type = transpose.outputs[0].name, transpose.outputs[0].type
    graph.insert_before(quantize, moved)
    quantize.replace_input_with(0, moved.outputs[0])
    transpose.outputs[0].replace_all_uses_with(dequantize.outputs[0], replace_graph_outputs=True)
    graph.remove(transpose, safe=True)
    return True
