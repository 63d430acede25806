"""Helpers for nodes and values that several passes use."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

if TYPE_CHECKING:
    import numpy as np

__all__ = [
    "LAYOUT",
    "bias_behind",
    "constant",
    "initializer",
    "is_op",
    "is_stored",
    "only_consumer",
    "producer",
    "replace_chain",
    "stored_matrix",
    "title",
]


LAYOUT = ("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Cast", "Dropout", "Expand", "Slice")
"""Operators that move values without changing them, as far as quantization is concerned."""

_MAX_DISTANCE = 12  # nodes between a stored weight and the product that reads it
_QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")  # ONNX Runtime has its own for types that the opset lacks
_SUBGRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def is_op(node: ir.Node | None, *op_types: str) -> bool:
    """Return whether ``node`` is one of the standard operators ``op_types``."""
    return node is not None and node.domain in ("", "ai.onnx") and node.op_type in op_types


def producer(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """Return the node that computes ``value`` if it is one of ``op_types``, else None."""
    node = None if value is None else value.producer()
    return node if is_op(node, *op_types) else None


def title(node: ir.Node) -> str:
    """Return the name of a node, or its operator and output if it has none."""
    return str(node.name) if node.name else f"{node.op_type} -> {node.outputs[0].name}"


def only_consumer(value: ir.Value, *op_types: str) -> ir.Node | None:
    """Return the only node that reads ``value``.

    Returns:
        The node, or None if there are several, it is none of the given ``op_types``, or ``value`` is a graph output.
    """
    readers = [use.node for use in value.uses()]
    if len(readers) != 1 or value.is_graph_output():
        return None
    return readers[0] if not op_types or is_op(readers[0], *op_types) else None


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Return the array of a constant ``value``, None if it is computed."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def is_stored(value: ir.Value | None) -> bool:
    """Return whether the file decides what ``value`` is: it is a constant, or computed from constants alone.

    A change of layout counts by what it moves, even if the new shape is computed.
    """
    return value is not None and _is_stored(value, _MAX_DISTANCE)


def _is_stored(value: ir.Value, far: int) -> bool:
    node = value.producer()
    if value.const_value is not None or node is None:
        return value.const_value is not None
    if is_op(node, "Constant"):
        return True
    is_known = is_op(node, node.op_type) or node.op_type in _QUANTIZERS
    if far == 0 or not is_known or node.op_type.startswith("Random") or _has_subgraph(node):
        return False
    sides = [side for side in node.inputs if side is not None]
    if is_op(node, *LAYOUT):
        sides = sides[:1]
    return bool(sides) and all(_is_stored(side, far - 1) for side in sides)


def _has_subgraph(node: ir.Node) -> bool:
    return any(attribute.type in _SUBGRAPHS for attribute in node.attributes.values())


def stored_matrix(value: ir.Value | None) -> np.ndarray | None:
    """Return the matrix of a constant ``value``, maybe through a Transpose; None if it is computed or not a matrix."""
    transpose = producer(value, "Transpose")
    array = constant(value if transpose is None else transpose.inputs[0])
    if array is None or array.ndim != 2:
        return None
    return array if transpose is None else array.transpose(transpose.attributes.get_ints("perm", (1, 0)))


def initializer(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """Add a constant to ``graph``, or return the equal one of that name. A different one of that name is kept."""
    known = graph.initializers.get(name)
    tensor = ir.Tensor(array, name=name)
    if known is not None:
        held = constant(known)
        if held is not None and held.dtype == array.dtype and held.shape == array.shape and (held == array).all():
            return known
        return initializer(graph, f"{name}_", array)
    value = ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)
    graph.register_initializer(value)
    return value


def bias_behind(product: ir.Node, width: int) -> tuple[ir.Node, ir.Value | None]:
    """Return the Add behind a product and the bias ``(width,)`` that it adds, or the product itself and None."""
    result = product.outputs[0]
    add = only_consumer(result, "Add")
    if add is not None:
        (other,) = [value for value in add.inputs if value is not result] or [None]
        array = constant(other)
        if array is not None and array.shape == (width,):
            return add, other
    return product, None


def replace_chain(graph: ir.Graph, fused: ir.Node, first: ir.Node, last: ir.Node) -> None:
    """Replace the chain from ``first`` to ``last`` by ``fused``, whose result takes over name, shape and readers."""
    ours, theirs = fused.outputs[0], last.outputs[0]
    ours.name, ours.shape, ours.type = theirs.name, theirs.shape, theirs.type
    graph.insert_before(last, fused)
    theirs.replace_all_uses_with(ours, replace_graph_outputs=True)
    graph.remove([last, first] if last is not first else first, safe=True)
