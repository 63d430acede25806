"""Infer the element types of a graph, as TensorRT does for a strongly typed network."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from exporters.onnx.passes.graph import is_op
from exporters.tensorrt.graph_structure import origin_of, quantized_type

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

__all__ = ["FLOATS", "clashes", "types_of"]

FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

_INTEGER_RESULT = ("Shape", "Size", "ArgMax", "ArgMin", "NonZero")
_BOOL_RESULT = (
    *("And", "Equal", "Greater", "GreaterOrEqual", "IsInf", "IsNaN"),
    *("Less", "LessOrEqual", "Not", "Or", "Xor"),
)
_ALIKE: Mapping[str, slice] = {
    **dict.fromkeys(("MatMul", "Gemm", "Conv", "Add", "Sub", "Mul", "Div", "Min", "Max", "Mean", "Sum"), slice(None)),
    **dict.fromkeys(("Concat", "Equal", "Greater", "Less", "PRelu"), slice(None)),
    "Where": slice(1, 3),
    "LayerNormalization": slice(0, 3),
}


def types_of(nodes: Sequence[ir.Node]) -> dict[ir.Value, ir.DataType]:
    """Infer the type of every value that ``nodes`` compute or read; unknown types are left out.

    The type that an operator gives counts more than the declared type, because passes and converters often leave
    declarations outdated.

    Args:
        nodes: All nodes, in topological order.
    """
    types: dict[ir.Value, ir.DataType] = {}

    def known(value: ir.Value | None) -> ir.DataType | None:
        if value is None:
            return None
        if value not in types:
            found = value.dtype if value.const_value is None else value.const_value.dtype
            if found is not None:
                types[value] = _held(found)
        return types.get(value)

    for node in nodes:
        for value in node.inputs:
            known(value)
        result = _result(node, [known(value) for value in node.inputs])
        for index, value in enumerate(node.outputs):
            if index == 0 and result is not None:
                types[value] = _held(result)
            else:
                known(value)
    return types


def _held(kind: ir.DataType) -> ir.DataType:
    """Return the type that TensorRT uses: it has no double."""
    return ir.DataType.FLOAT if kind is ir.DataType.DOUBLE else kind


def _result(node: ir.Node, inputs: Sequence[ir.DataType | None]) -> ir.DataType | None:
    """Return the type of the first output, None if only the declaration can tell."""
    first = inputs[0] if inputs else None
    if node.domain not in ("", "ai.onnx") or node.op_type in ("Constant", "ConstantOfShape", "If", "Loop", "Scan"):
        return None
    if is_op(node, "Cast"):
        return ir.DataType(node.attributes.get_int("to", 0)) if "to" in node.attributes else None
    if is_op(node, *_INTEGER_RESULT):
        return ir.DataType.INT64
    if is_op(node, *_BOOL_RESULT):
        return ir.DataType.BOOL
    if is_op(node, "QuantizeLinear"):
        return quantized_type(node) or ir.DataType.UINT8
    if is_op(node, "DequantizeLinear"):
        written = node.attributes.get_int("output_dtype", 0)
        return ir.DataType(written) if written else (inputs[1] if len(inputs) > 1 else None)
    if is_op(node, "Where", "CastLike"):
        return inputs[1] if len(inputs) > 1 else None
    if is_op(node, "OneHot"):
        return inputs[2] if len(inputs) > 2 else None
    return first


def clashes(nodes: Sequence[ir.Node], types: Mapping[ir.Value, ir.DataType]) -> Iterator[tuple[ir.Node, str]]:
    """Iterate over nodes whose operands must have the same type and do not, with a description."""
    for node in nodes:
        if node.op_type not in _ALIKE or not is_op(node, node.op_type):
            continue
        values = [value for value in node.inputs[_ALIKE[node.op_type]] if value is not None]
        found = [(value, types[value]) for value in values if value in types]
        if len({kind for _, kind in found}) > 1:
            shown = ", ".join(f"{kind.name.lower()} ({origin_of(value)})" for value, kind in found)
            yield node, f"{node.op_type} reads {shown}"
