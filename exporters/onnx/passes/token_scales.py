"""Let products read integers when every token has a scale of its own."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.onnx.passes.graph import constant, initializer, is_op, producer, stored_matrix

__all__ = ["TokenScalesPass"]


class TokenScalesPass(ir.passes.InPlacePass):
    """Multiply by the scales of the tokens behind a product with a stored weight instead of in front of it.

    Every row of the product has one scale, so the order makes no difference. The product then reads integers with one
    scale, and other passes make an integer product of it.

    Case 1: ``MatMul(Mul(Clip(Round(Div(x, s)), low, high), s), DequantizeLinear(W))``, where ``s`` has a last axis of 1
    and ``W`` is a constant matrix, becomes ``Mul(MatMul(DequantizeLinear(QuantizeLinear(Div(x, s), 1, 0)), ...), s)``.
    The bounds are not needed, because ``s`` follows from the largest magnitude of the token.
    Case 2: Several products read the tensor: it is quantized once.
    Case 3: Other nodes read it as well: they keep reading it as it is.
    Case 4: Anything else, such as zero points per token: nothing changes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Move the scales behind every product of case 1."""
        modified = False
        for node in list(model.graph):
            if is_op(node, "MatMul"):
                modified |= _try_move(model.graph, node)
        return ir.passes.PassResult(model, modified)


def _try_move(graph: ir.Graph, product: ir.Node) -> bool:
    scaled, weight = (producer(value, kind) for value, kind in zip(product.inputs, _OPERANDS, strict=True))
    clip = producer(scaled.inputs[0], "Clip") if scaled is not None else None
    rounded = producer(clip.inputs[0], "Round") if clip is not None else None
    divided = producer(rounded.inputs[0], "Div") if rounded is not None else None
    if scaled is None or clip is None or divided is None or weight is None:
        return False  # case 4
    scale = scaled.inputs[1]
    if scale is None or scale is not divided.inputs[1] or not scale.shape or scale.shape[-1] != 1:
        return False  # case 4
    bounds = [constant(value) for value in clip.inputs[1:]]
    if len(bounds) != 2 or any(b is None or abs(float(b)) > 128 for b in bounds):
        return False  # case 4
    if stored_matrix(weight.inputs[0]) is None:
        return False  # case 4
    product.replace_input_with(0, _integers(graph, divided, before=scaled))
    result = product.outputs[0]
    behind = ir.node("Mul", [result, scale], name=f"{product.name}/token_scales")
    moved = behind.outputs[0]
    result.replace_all_uses_with(moved, replace_graph_outputs=True)
    behind.replace_input_with(0, result)
    moved.name, result.name = result.name, f"{result.name}_unscaled"
    moved.shape, moved.type = result.shape, result.type
    graph.insert_after(product, behind)
    return True


_OPERANDS = ("Mul", "DequantizeLinear")


def _integers(graph: ir.Graph, divided: ir.Node, *, before: ir.Node) -> ir.Value:
    """Quantize the output of ``divided`` with the scale 1, and return it dequantized again."""
    found = next((use.node for use in divided.outputs[0].uses() if is_op(use.node, "QuantizeLinear")), None)
    if found is not None:  # case 2
        return next(use.node for use in found.outputs[0].uses()).outputs[0]
    slot = str(divided.name).rpartition("/")[0]
    # A scale of 1: the division before has already brought the tensor into steps.
    grid = [
        initializer(graph, f"{slot}.token_step", np.array(1, np.float32)),
        initializer(graph, f"{slot}.token_zero_point", np.array(0, np.int8)),
    ]
    x = divided.outputs[0]
    quantize = ir.node("QuantizeLinear", [x, *grid], name=f"{slot}/QuantizeLinear")
    q = quantize.outputs[0]
    q.name, q.shape, q.type = f"{slot}/QuantizeLinear_output_0", x.shape, ir.TensorType(ir.DataType.INT8)
    dequantize = ir.node("DequantizeLinear", [q, *grid], name=f"{slot}/DequantizeLinear")
    back = dequantize.outputs[0]
    back.name, back.shape, back.type = f"{slot}/DequantizeLinear_output_0", x.shape, x.type
    graph.insert_before(before, [quantize, dequantize])
    return back
