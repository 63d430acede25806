"""Scale the query of an attention instead of its scores."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.onnx.passes.graph import constant, initializer, is_op, is_stored, only_consumer, producer

__all__ = ["ScaleQueryPass"]

_LAYOUT = ("Reshape", "Transpose")


class ScaleQueryPass(ir.passes.InPlacePass):
    """Move the scaling of attention scores into the linear layer that computes the query.

    TensorRT fuses attention only in this form. The multiplier goes into the bias, into the scales of the weight, and
    into the scale of the query's quantizer. All integers stay the same, and one node disappears.

    Case 1: ``MatMul -> Div(c)`` or ``Mul(c)`` behind a query ``(x W + b)`` with no other reader, changes of layout, and
    maybe a quantizer with one scale. The weight is stored in integers or in float.
    Case 2: The weight or its scales are shared by layers that repeat: this layer gets scales of its own.
    Case 3: A computed multiplier, one that is not above 0, or a query that has other readers or is not the output of a
    linear layer: nothing changes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Move every scaling of case 1 or 2."""
        modified = False
        for node in list(model.graph):
            if is_op(node, "Div", "Mul"):
                modified |= _try_move(model.graph, node)
        return ir.passes.PassResult(model, modified)


def _try_move(graph: ir.Graph, scaling: ir.Node) -> bool:
    scores, multiplier = _scores_and_multiplier(scaling)
    if scores is None or multiplier is None or only_consumer(scores.outputs[0]) is None:
        return False
    chain = _query(scores.inputs[0])
    if chain is None:
        return False
    *quantizers, last = chain
    # Whatever else reads the query or its quantizer would be scaled as well.
    readers = [value for node in chain for value in node.outputs if only_consumer(value) is None]
    linear = producer(_computed(last), "MatMul") if is_op(last, "Add") else last
    if readers or linear is None or only_consumer(linear.outputs[0]) is None:
        return False  # case 3
    if not _scale_weight(graph, linear, multiplier):
        return False
    if is_op(last, "Add"):
        _scale_input(graph, last, _bias_index(last), multiplier)
    for node in quantizers:
        if is_op(node, "QuantizeLinear", "DequantizeLinear"):
            _scale_input(graph, node, 1, multiplier)
    scaling.outputs[0].replace_all_uses_with(scores.outputs[0])
    graph.remove(scaling, safe=True)
    return True


def _scores_and_multiplier(scaling: ir.Node) -> tuple[ir.Node | None, float | None]:
    """Return the product of two computed tensors that ``scaling`` reads, and the multiplier."""
    order = (0,) if is_op(scaling, "Div") else (0, 1)
    for index in order:
        scores = producer(scaling.inputs[index], "MatMul")
        number = constant(scaling.inputs[1 - index])
        if scores is None or number is None or number.size != 1 or scaling.outputs[0].is_graph_output():
            continue
        value = float(number.reshape(-1)[0])
        if any(is_stored(side) for side in scores.inputs) or not np.isfinite(value) or value <= 0:
            continue
        return scores, 1 / value if is_op(scaling, "Div") else value
    return None, None


def _query(value: ir.Value | None) -> list[ir.Node] | None:
    """Return the nodes from the product back to the bias of the linear layer, or to its MatMul without a bias."""
    chain = []
    while True:
        node = producer(value, "DequantizeLinear", "QuantizeLinear", "Add", "MatMul", *_LAYOUT)
        if node is None or (is_op(node, "Add") and _bias_index(node) is None):
            return None
        if is_op(node, "QuantizeLinear", "DequantizeLinear") and not _has_one_scale(node):
            return None
        chain.append(node)
        if is_op(node, "Add", "MatMul"):
            return chain
        value = node.inputs[0]


def _has_one_scale(node: ir.Node) -> bool:
    scale = constant(node.inputs[1])
    return scale is not None and scale.size == 1


def _bias_index(add: ir.Node) -> int | None:
    stored = [index for index, value in enumerate(add.inputs) if constant(value) is not None]
    return stored[0] if len(stored) == 1 else None


def _computed(add: ir.Node) -> ir.Value | None:
    index = _bias_index(add)
    return None if index is None else add.inputs[1 - index]


def _scale_weight(graph: ir.Graph, linear: ir.Node, multiplier: float) -> bool:
    """Scale the output of ``linear`` through its weight, which is its second operand."""
    weight = linear.inputs[1]
    if constant(weight) is not None:
        _scale_input(graph, linear, 1, multiplier)
        return True
    dequantize = producer(weight, "DequantizeLinear")
    if dequantize is None or constant(dequantize.inputs[1]) is None or constant(dequantize.inputs[0]) is None:
        return False
    assert weight is not None
    if only_consumer(weight) is None:  # case 2
        own = ir.node("DequantizeLinear", dequantize.inputs, dequantize.attributes, name=f"{linear.name}/Dequantize")
        own.outputs[0].name = f"{own.name}_output_0"
        own.outputs[0].type, own.outputs[0].shape = weight.type, weight.shape
        graph.insert_before(linear, own)
        linear.replace_input_with(1, own.outputs[0])
        dequantize = own
    _scale_input(graph, dequantize, 1, multiplier)
    return True


def _scale_input(graph: ir.Graph, node: ir.Node, index: int | None, multiplier: float) -> None:
    """Multiply a stored input of ``node``. Other readers keep the original."""
    assert index is not None
    value = node.inputs[index]
    array = constant(value)
    assert value is not None
    assert array is not None
    # In float64, so that the product is rounded only once.
    scaled = (array.astype(np.float64) * multiplier).astype(array.dtype)
    node.replace_input_with(index, initializer(graph, f"{value.name}_scaled", scaled))
