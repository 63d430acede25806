"""Find the matrix products of a graph, and say what each runs in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from exporters.onnx.passes.graph import is_op, is_stored, title
from exporters.onnx.product_operators import (
    ATTENTION,
    ATTENTION_WITH_WEIGHTS,
    FLOAT_PRODUCTS,
    INTEGER_PRODUCTS,
    WEIGHT_ONLY,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Product", "products_of"]

_INTEGER = "int8"
_FLOAT = "float"
_IN_ONE_NODE = "both products are in one node, which has no int8"
# Runtimes move a DequantizeLinear behind these, so that the product reads it directly.
_MOVED = ("Transpose", "Reshape", "Identity", "Squeeze", "Unsqueeze", "Flatten", "Slice")
_WIDE = (ir.DataType.INT16, ir.DataType.UINT16)


@dataclass(frozen=True)
class Product:
    """Describe a matrix product of the graph.

    Args:
        name: Name of the node, which is named after its module; its operator and output if it has none.
        kind: ``linear`` (one operand is stored) or ``attention`` (both are computed).
        runs_in: ``int8`` if both operands are quantized, else ``float``.
        why: Why a product runs in float; None if it runs in int8.
    """

    name: str
    kind: str
    runs_in: str
    why: str | None = None


def products_of(node: ir.Node) -> Iterator[Product]:
    """Iterate over the matrix products that a node computes: mostly none or one."""
    name, operator = title(node), node.op_type
    is_standard = is_op(node, operator)
    if operator in INTEGER_PRODUCTS:
        yield Product(name, _kind(node, INTEGER_PRODUCTS[operator]), _INTEGER)
    elif operator in WEIGHT_ONLY:
        yield Product(name, "linear", _FLOAT, "only its weight is quantized")
    elif operator in ATTENTION_WITH_WEIGHTS and not is_standard:
        if ATTENTION_WITH_WEIGHTS[operator]:
            yield Product(name, "linear", _INTEGER)
        else:
            yield Product(name, "linear", _FLOAT, "neither operand is quantized")
        yield Product(name, "attention", _FLOAT, _IN_ONE_NODE)
    elif operator in ATTENTION:
        yield Product(name, "attention", _FLOAT, _IN_ONE_NODE)
    elif operator in FLOAT_PRODUCTS and len(node.inputs) >= 2:
        yield _of_floats(node, name)


def _kind(node: ir.Node, operands: tuple[int, int]) -> str:
    sides = [node.inputs[index] for index in operands if index < len(node.inputs)]
    return "linear" if any(is_stored(side) for side in sides) else "attention"


def _of_floats(node: ir.Node, name: str) -> Product:
    kind = _kind(node, (0, 1))
    if node.op_type == "Einsum":
        return Product(name, kind, _FLOAT, "Einsum has no int8")
    dequantizers = [_dequantizer(value) for value in node.inputs[:2]]
    free = [index for index, dequantize in enumerate(dequantizers) if dequantize is None]
    if len(free) == 2:
        return Product(name, kind, _FLOAT, "neither operand is quantized")
    if free:
        (index,) = free
        is_weight = is_stored(node.inputs[index])
        missing = "weight" if is_weight else "input" if kind == "linear" else ("first operand", "second operand")[index]
        return Product(name, kind, _FLOAT, f"its {missing} is not quantized")
    wide = [integers for dequantize in dequantizers if (integers := _integers(dequantize)) in _WIDE]
    if wide and wide[0] is not None:
        return Product(name, kind, _FLOAT, f"an operand is {wide[0].name.lower()}, and integer products have 8 bits")
    return Product(name, kind, _INTEGER)


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    """Return the DequantizeLinear that ``value`` comes from, maybe through a change of shape."""
    while value is not None:
        node = value.producer()
        if node is None or node.op_type == "DequantizeLinear":  # in the domain of ONNX Runtime as well
            return node
        if not is_op(node, *_MOVED):
            return None
        value = node.inputs[0]
    return None


def _integers(dequantize: ir.Node | None) -> ir.DataType | None:
    if dequantize is None:
        return None
    values = [dequantize.inputs[index] for index in (2, 0) if index < len(dequantize.inputs)]
    return next((value.dtype for value in values if value is not None and value.dtype is not None), None)
