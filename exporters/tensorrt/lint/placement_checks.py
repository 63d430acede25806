"""Checks of where quantizers are placed: E13, W2, W3, W5 to W11, W13, W15."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from exporters.onnx.passes.graph import constant, is_op, producer
from exporters.tensorrt.graph_structure import (
    LAYOUT,
    Attention,
    GraphStructure,
    Operand,
    Product,
    array,
    consumers,
    origin_of,
    title,
)
from exporters.tensorrt.lint.quantizer_checks import finding
from exporters.tensorrt.profiles import longest_sequence

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exporters.tensorrt.lint.rules import Finding
    from exporters.tensorrt.lint.settings import Settings

__all__ = ["PLACEMENT_CHECKS"]

_LEAST = 16  # inputs and outputs of an int8 product; smaller ones run slower than in float (W13)
_HEADS = (16, 32, 64)  # head sizes of fused int8 attention (W7)
_LONGEST = 512  # tokens of fused int8 attention (W7)
_ELEMENTWISE = ("Div", "Erf", "Mul", "Pow", "Relu", "Sigmoid", "Sqrt", "Sub", "Tanh")
_FLOAT_INPUT = ("LayerNormalization", "Softmax", "Gelu")


def products(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:  # noqa: ARG001
    """E13, W2, W3, W13: the operands of a product are quantized alike, and large enough."""
    for product in structure.products:
        node, sides = product.node, (product.left, product.right)
        types = {side.type for side in sides}
        if ir.DataType.FLOAT8E4M3FN in types and ir.DataType.INT8 in types:
            yield finding("E13", node, "it multiplies int8 with fp8")
        if [side.is_quantized for side in sides].count(True) == 1:
            free = product.left if product.right.is_quantized else product.right
            if not types & {ir.DataType.INT4, ir.DataType.FLOAT4E2M1}:  # 4-bit products quantize only the weight
                yield finding("W2", node, f"{origin_of(free.value)} is not quantized, the other operand is")
        kinds = {kind for side in sides if (kind := _scale_type(side)) is not None}
        if len(kinds) > 1:
            names = " and ".join(sorted(kind.name.lower() for kind in kinds))
            yield finding("E9", node, f"the scales of its operands are {names}")
        if product.is_linear and product.right.stored and product.right.dequantize is not None:
            yield from _weight(product)


def _scale_type(side: Operand) -> ir.DataType | None:
    if side.dequantize is None or side.dequantize.inputs[1] is None:
        return None
    kind = side.dequantize.inputs[1].dtype
    return ir.DataType.FLOAT if kind is ir.DataType.DOUBLE else kind  # TensorRT has no double


def _weight(product: Product) -> Iterator[Finding]:
    node, dequantize = product.node, product.right.dequantize
    assert dequantize is not None
    data, scale = dequantize.inputs[0], array(dequantize.inputs[1])
    shape = None if data is None else data.shape
    if shape is None or scale is None:
        return
    axis = _axis_at_product(product.right.value, dequantize, len(shape))
    wanted = _output_axis(node, len(shape))
    if scale.ndim == 1 and scale.size > 1 and axis is not None and axis != wanted:
        yield finding("W3", node, f"the scales of its weight are on axis {axis}, its outputs on {wanted}")
    sizes = [size for size in shape if isinstance(size, int)]
    if product.left.is_quantized and node.op_type != "Conv" and len(sizes) == 2:
        if min(sizes) < _LEAST:
            yield finding("W13", node, f"its weight is {sizes[0]} x {sizes[1]}")
        elif any(size % _LEAST for size in sizes):
            yield finding("W13", node, f"its weight is {sizes[0]} x {sizes[1]}, not a multiple of 16", "info")


def _axis_at_product(value: ir.Value, dequantize: ir.Node, rank: int) -> int | None:
    """Return the axis of the scales in the weight that the product reads, None if a change of layout hides it."""
    axis = dequantize.attributes.get_int("axis", 1) % rank
    chain = []
    node = producer(value, "DequantizeLinear", *LAYOUT)
    while node is not None and node is not dequantize:
        chain.append(node)
        node = producer(node.inputs[0], "DequantizeLinear", *LAYOUT)
    for node in reversed(chain):
        if is_op(node, "Transpose"):
            perm = list(node.attributes.get_ints("perm", range(rank - 1, -1, -1)))
            axis = perm.index(axis)
        elif not is_op(node, "Cast", "Identity", "Dropout"):
            return None
    return axis


def _output_axis(node: ir.Node, rank: int) -> int:
    if node.op_type == "Conv" or (node.op_type == "Gemm" and node.attributes.get_int("transB", 0) == 1):
        return 0
    return rank - 1


def shared(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:  # noqa: ARG001
    """W5: query, key and value share one quantizer."""
    for group in structure.siblings:
        scales = {}
        for product in group:
            dequantize = product.left.dequantize
            if dequantize is not None:
                scale = array(dequantize.inputs[1])
                if scale is not None:
                    scales[product] = scale.tobytes()
        if len(set(scales.values())) > 1:
            names = ", ".join(title(product.node) for product in scales)
            yield finding("W5", group[0].node, f"{names} read one tensor with {len(set(scales.values()))} scales")


def attention(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:
    """W6, W7, W8: int8 attention can be fused."""
    longest = max((longest_sequence(p, settings.source.inputs) for p in settings.profiles), default=0)
    for one in structure.attentions:
        sites = {
            "query": one.scores.left.is_quantized,
            "key": one.scores.right.is_quantized,
            "softmax": one.context.left.is_quantized,
            "value": one.context.right.is_quantized,
            "context": _is_quantized_behind(one.context.node.outputs[0]),
        }
        free = [name for name, is_quantized in sites.items() if not is_quantized]
        quantized_inside = len(free) < 4 or (len(free) == 4 and "context" in free)
        if free and quantized_inside:
            yield finding("W6", one.softmax, f"{', '.join(free)} {'is' if len(free) == 1 else 'are'} not quantized")
        if quantized_inside:
            yield from _sizes(one, longest)
        for node in one.between:
            if is_op(node, "QuantizeLinear"):
                yield finding("W8", node, "it stands between scores and softmax")
            elif is_op(node, "Mul", "Div") and any(_is_number(value) for value in node.inputs):
                yield finding("W8", node, "it scales the scores", "info")


def _is_number(value: ir.Value | None) -> bool:
    number = constant(value)
    return number is not None and number.size == 1


def _is_quantized_behind(value: ir.Value) -> bool:
    for node in consumers(value, "QuantizeLinear", *LAYOUT):
        if is_op(node, "QuantizeLinear") or _is_quantized_behind(node.outputs[0]):
            return True
    return False


def _sizes(one: Attention, longest: int) -> Iterator[Finding]:
    shapes = (one.scores.left.value.shape, one.context.right.value.shape)
    head = next((shape[-1] for shape in shapes if shape is not None and isinstance(shape[-1], int)), None)
    if head is not None and head not in _HEADS:
        yield finding("W7", one.softmax, f"its heads have a size of {head}")
    if longest > _LONGEST:
        yield finding("W7", one.softmax, f"a profile goes up to {longest} tokens")


def residuals(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:  # noqa: ARG001
    """W9: residual operands are quantized, and inputs of GELU are not."""
    int8 = {product.node for product in structure.products if product.is_linear and product.wanted == "int8"}
    for residual in structure.residuals:
        behind = _product_behind(residual.branch.value)
        if behind in int8 and not residual.skip.is_quantized:
            yield finding(
                "W9", residual.node, f"its residual operand {origin_of(residual.skip.value)} is not quantized"
            )
    for node in structure.of("Gelu", "Erf"):
        start = node.inputs[0]
        scaled = producer(start, "Div", "Mul") if is_op(node, "Erf") else None
        first = scaled.inputs[0] if scaled is not None else start
        dequantize = producer(first, "DequantizeLinear")
        if dequantize is not None:
            yield finding("W9", node, f"the quantizer {title(dequantize)} stands in front of it")


def _product_behind(value: ir.Value | None) -> ir.Node | None:
    node = producer(value, "MatMul", "Gemm", "Add", "QuantizeLinear", "DequantizeLinear", *LAYOUT)
    if node is None or is_op(node, "MatMul", "Gemm"):
        return node
    for side in node.inputs[: 2 if is_op(node, "Add") else 1]:
        behind = _product_behind(side)
        if behind is not None:
            return behind
    return None


def in_float(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:  # noqa: ARG001
    """W10 and W15: operators that int8 does not make faster stay in float."""
    for node in structure.of(*_FLOAT_INPUT):
        if producer(node.inputs[0], "DequantizeLinear") is not None and not is_op(node, "Gelu"):  # GELU: W9
            yield finding("W10", node, f"the input of {node.op_type} is quantized")
    for node in structure.of("Gather"):
        if producer(node.inputs[0], "DequantizeLinear") is not None:
            yield finding("W10", node, "its table is quantized")
    for product in structure.products:
        if product.is_linear and product.wanted != "float" and _ends_the_graph(product.node.outputs[0]):
            yield finding("W10", product.node, "it is the last layer in front of an output")
    for node in structure.of(*_ELEMENTWISE):
        computed = [value for value in node.inputs if value is not None and constant(value) is None]
        if not computed or not all(producer(value, "DequantizeLinear") for value in computed):
            continue
        if not consumers(node.outputs[0], "QuantizeLinear") and not _in_gelu(node):
            yield finding("W15", node, f"{node.op_type} reads integers and gives float")


def _in_gelu(node: ir.Node) -> bool:
    return bool(consumers(node.outputs[0], "Erf"))


def _ends_the_graph(value: ir.Value) -> bool:
    if value.is_graph_output():
        return True
    readers = consumers(value)
    through = ("Add", "Split", *LAYOUT)
    return len(readers) == 1 and is_op(readers[0], *through) and any(map(_ends_the_graph, readers[0].outputs))


def chains(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:  # noqa: ARG001
    """W11: normalizations and GELUs are single operators."""
    for mean in structure.of("ReduceMean"):
        centred = [node for node in consumers(mean.outputs[0], "Sub") if node.inputs[0] is mean.inputs[0]]
        squares = [node for sub in centred for node in consumers(sub.outputs[0], "Pow", "Mul")]
        if any(consumers(square.outputs[0], "ReduceMean") for square in squares):
            yield finding("W11", mean, "a LayerNormalization is written out")
    for tanh in structure.of("Tanh"):
        inner = producer(tanh.inputs[0], "Mul")
        sums = [] if inner is None else [producer(value, "Add") for value in inner.inputs]
        terms = [producer(value, "Mul") for add in sums if add is not None for value in add.inputs]
        if any(producer(value, "Pow") is not None for term in terms if term is not None for value in term.inputs):
            yield finding("W11", tanh, "a GELU is written out with Tanh")


PLACEMENT_CHECKS = (products, shared, attention, residuals, in_float, chains)
