"""Find the products, attentions and residual additions of a graph, and their quantizers.

They are found by structure, not by name, so that graphs of other exporters are understood as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from exporters.onnx.passes.graph import LAYOUT, constant, is_op, is_stored, producer, title

__all__ = [
    "LAYOUT",
    "Attention",
    "GraphStructure",
    "Operand",
    "Product",
    "Residual",
    "array",
    "consumers",
    "dequantized",
    "holds_infinity",
    "largest_finite",
    "module_of",
    "origin_of",
    "quantized_type",
    "title",
]

_MAX_DISTANCE = 12  # nodes; parts of one attention or addition are closer to each other


def module_of(node: ir.Node | str) -> str:
    """Return the module of a node: its name without the operator at the end."""
    name = node if isinstance(node, str) else str(node.name or "")
    return name.rpartition("/")[0] or name


def origin_of(value: ir.Value) -> str:
    """Return the title of the node that computes a value, or the name of the value if none does."""
    node = value.producer()
    return str(value.name) if node is None else title(node)


def consumers(value: ir.Value | None, *op_types: str) -> list[ir.Node]:
    """Return the nodes that read ``value``, only those of ``op_types`` if any are given."""
    if value is None:
        return []
    readers = list(dict.fromkeys(use.node for use in value.uses()))
    return [node for node in readers if not op_types or is_op(node, *op_types)]


def quantized_type(node: ir.Node) -> ir.DataType | None:
    """Return the type that a QuantizeLinear gives or a DequantizeLinear reads, None if the file does not say."""
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        zero_point = node.inputs[2]
        if zero_point.dtype is not None:
            return zero_point.dtype
        cast = producer(zero_point, "Cast")
        if cast is not None:
            return ir.DataType(cast.attributes.get_int("to", 0))
    written = node.attributes.get_int("output_dtype", 0)
    if is_op(node, "QuantizeLinear"):
        return ir.DataType(written) if written else None
    source = node.inputs[0]
    quantize = producer(source, "QuantizeLinear")
    if quantize is not None:
        return quantized_type(quantize)
    return None if source is None else source.dtype


@dataclass(frozen=True)
class Operand:
    """Describe one operand of a product or an addition.

    Args:
        value: The value that the node reads.
        dequantize: The DequantizeLinear that it comes from, maybe through a change of layout.
        stored: Whether it is a constant of the file.
    """

    value: ir.Value
    dequantize: ir.Node | None
    stored: bool

    @property
    def is_quantized(self) -> bool:
        """Whether the operand is quantized."""
        return self.dequantize is not None

    @property
    def type(self) -> ir.DataType | None:
        """The quantized type."""
        return None if self.dequantize is None else quantized_type(self.dequantize)


@dataclass(frozen=True)
class Product:
    """Describe a matrix product.

    Args:
        node: The MatMul, Gemm or Conv.
        left: First operand.
        right: Second operand.
    """

    node: ir.Node
    left: Operand
    right: Operand

    @property
    def is_linear(self) -> bool:
        """Whether one operand is stored."""
        return self.left.stored or self.right.stored

    @property
    def wanted(self) -> str:
        """The type that the file asks for: ``int8``, ``fp8`` or ``float``."""
        types = {self.left.type, self.right.type}
        if types == {ir.DataType.INT8} or (types == {ir.DataType.INT8, None} and self._both):
            return "int8"
        return "fp8" if types == {ir.DataType.FLOAT8E4M3FN} else "float"

    @property
    def _both(self) -> bool:
        return self.left.is_quantized and self.right.is_quantized


@dataclass(frozen=True)
class Attention:
    """Describe an attention: a softmax between two products.

    Args:
        scores: The product in front of the softmax.
        softmax: The Softmax.
        context: The product behind the softmax.
        between: Nodes between scores and softmax, such as scaling and mask.
    """

    scores: Product
    softmax: ir.Node
    context: Product
    between: tuple[ir.Node, ...]

    @property
    def module(self) -> str:
        """The module of the attention."""
        return module_of(self.softmax)


@dataclass(frozen=True)
class Residual:
    """Describe a residual addition.

    Args:
        node: The Add.
        branch: The output of a linear layer.
        skip: The residual operand.
    """

    node: ir.Node
    branch: Operand
    skip: Operand


class GraphStructure:
    """Analyze a graph for the lint and the report. Each property is computed once.

    Args:
        model: The graph. Its weights are not read.
    """

    def __init__(self, model: ir.Model) -> None:
        self.model = model
        self.nodes = list(model.graph.all_nodes())

    def of(self, *op_types: str) -> list[ir.Node]:
        """Return all nodes of these types, in order."""
        return [node for node in self.nodes if is_op(node, *op_types)]

    @cached_property
    def opset(self) -> int:
        """Version of the standard operators."""
        imports = self.model.graph.opset_imports
        return int(imports.get("", imports.get("ai.onnx", 0)))

    @cached_property
    def products(self) -> list[Product]:
        """All matrix products."""
        return [
            Product(node, *(operand(value) for value in node.inputs[:2] if value is not None))
            for node in self.of("MatMul", "Gemm", "Conv")
            if len(node.inputs) >= 2 and None not in node.inputs[:2]
        ]

    @cached_property
    def _product_of(self) -> dict[ir.Node, Product]:
        return {product.node: product for product in self.products}

    @cached_property
    def attentions(self) -> list[Attention]:
        """All attentions."""
        found = []
        for softmax in self.of("Softmax"):
            path = _back_to_product(softmax.inputs[0])
            behind = _forward_to_product(softmax.outputs[0])
            if path is None or behind is None:
                continue
            scores, between = path
            found.append(Attention(self._product_of[scores], softmax, self._product_of[behind], between))
        return found

    @cached_property
    def residuals(self) -> list[Residual]:
        """All residual additions."""
        found = []
        for node in self.of("Add"):
            sides = [value for value in node.inputs if value is not None]
            if len(sides) != 2 or any(is_stored(value) for value in sides):
                continue
            # The operand that comes from a linear layer is the branch, the other one is the residual.
            linear = [_linear_behind(value) for value in sides]
            if all(linear):  # the residual operand comes from a projection; it has more readers than the branch
                linear = [len(_readers(source(value))) == 1 for value in sides]
            if linear.count(True) == 1 and _goes_on(node.outputs[0]):
                branch, skip = sides if linear[0] else reversed(sides)
                found.append(Residual(node, operand(branch), operand(skip)))
        return found

    @cached_property
    def siblings(self) -> list[list[Product]]:
        """Linear layers that read the same tensor, before it is quantized: query, key and value."""
        groups: dict[ir.Value, list[Product]] = {}
        for product in self.products:
            if product.is_linear and not product.left.stored:
                groups.setdefault(source(product.left.value), []).append(product)
        return [group for group in groups.values() if len(group) > 1]

    @cached_property
    def element_type(self) -> ir.DataType:
        """Type of what is not quantized: half precision if a LayerNormalization, Softmax or product has it."""
        for node in self.of("LayerNormalization", "Softmax", "MatMul", "Gemm"):
            for value in node.outputs:
                if value.dtype in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
                    return value.dtype
        return ir.DataType.FLOAT


def operand(value: ir.Value) -> Operand:
    """Describe the operand ``value``."""
    return Operand(value, _dequantize_of(value), is_stored(value))


def source(value: ir.Value) -> ir.Value:
    """Return the tensor in front of a quantizer, a Cast or a change of layout."""
    for _ in range(_MAX_DISTANCE):
        node = producer(value, "QuantizeLinear", "DequantizeLinear", *LAYOUT)
        if node is None or node.inputs[0] is None:
            break
        value = node.inputs[0]
    return value


def _dequantize_of(value: ir.Value | None) -> ir.Node | None:
    for _ in range(_MAX_DISTANCE):
        node = producer(value, "DequantizeLinear", *LAYOUT)
        if node is None or is_op(node, "DequantizeLinear"):
            return node
        value = node.inputs[0]
    return None


def _readers(value: ir.Value) -> list[ir.Node]:
    """Return the nodes that read ``value``, also through its quantizer."""
    found = []
    for node in consumers(value):
        through = is_op(node, "QuantizeLinear", "DequantizeLinear", "Cast", "Identity")
        found += _readers(node.outputs[0]) if through else [node]
    return found


def _goes_on(value: ir.Value) -> bool:
    """Return whether a sum is normalized or added to again. The sums inside an activation function are not."""
    behind = ("Add", "LayerNormalization", "ReduceMean")
    return value.is_graph_output() or any(is_op(node, *behind) for node in _readers(value))


def _linear_behind(value: ir.Value) -> bool:
    """Return whether ``value`` comes from a linear layer, with at most a bias and a quantizer between."""
    current: ir.Value | None = value
    for _ in range(_MAX_DISTANCE):
        node = producer(current, "MatMul", "Gemm", "Add", "QuantizeLinear", "DequantizeLinear", *LAYOUT)
        if node is None:
            return False
        if is_op(node, "MatMul", "Gemm"):
            return any(is_stored(side) for side in node.inputs[:2])
        if is_op(node, "Add"):
            computed = [side for side in node.inputs if not is_stored(side)]
            if len(computed) != 1:
                return False
            current = computed[0]
        else:
            current = node.inputs[0]
    return False


def _back_to_product(value: ir.Value | None, far: int = _MAX_DISTANCE) -> tuple[ir.Node, tuple[ir.Node, ...]] | None:
    """Return the product of two computed tensors that ``value`` comes from, and the nodes between."""
    passing = ("Add", "Sub", "Mul", "Div", "Where", "Clip", "QuantizeLinear", "DequantizeLinear", *LAYOUT)
    node = producer(value, "MatMul", *passing)
    if node is None or far == 0:
        return None
    if is_op(node, "MatMul"):
        return None if any(is_stored(side) for side in node.inputs) else (node, ())
    sides = node.inputs[1:] if is_op(node, "Where") else node.inputs[:2]
    if is_op(node, "QuantizeLinear", "DequantizeLinear", *LAYOUT):
        sides = node.inputs[:1]
    for side in sides:
        found = _back_to_product(side, far - 1)
        if found is not None:
            return found[0], (*found[1], node)
    return None


def _forward_to_product(value: ir.Value) -> ir.Node | None:
    for _ in range(_MAX_DISTANCE):
        readers = consumers(value, "MatMul", "QuantizeLinear", "DequantizeLinear", "Where", *LAYOUT)
        if not readers:
            return None
        product = next((node for node in readers if is_op(node, "MatMul")), None)
        if product is not None:
            return None if any(is_stored(side) for side in product.inputs) else product
        value = readers[0].outputs[0]
    return None


def array(value: ir.Value | None) -> np.ndarray | None:
    """Return the array of a constant, maybe behind a Cast; None if it is computed."""
    cast = producer(value, "Cast")
    found = constant(cast.inputs[0] if cast is not None else value)
    if found is None or cast is None:
        return found
    return found.astype(ir.DataType(cast.attributes.get_int("to", 0)).numpy())


def dequantized(node: ir.Node) -> np.ndarray | None:
    """Return what a DequantizeLinear makes of a constant, within the finite numbers of its type.

    What is computed gives None, and so do blocks of several scales along an axis.
    """
    numbers, scale = _numbers(node), array(node.inputs[1])
    if numbers is None or scale is None:
        return None
    limit = largest_finite(scale.dtype)
    found: np.ndarray = np.clip(numbers, -limit, limit).astype(scale.dtype)
    return found


def largest_finite(dtype: np.dtype[Any]) -> float:
    """Return the largest number that a type holds; numpy itself knows no bfloat16."""
    return float(ml_dtypes.finfo(dtype).max)  # type: ignore[no-untyped-call]


def holds_infinity(node: ir.Node) -> bool:
    """Return whether a DequantizeLinear of a constant overflows the type of its scale, although the scale is finite."""
    numbers, scale = _numbers(node), array(node.inputs[1])
    if numbers is None or scale is None or not np.isfinite(numbers).all():
        return False
    with np.errstate(over="ignore"):
        return bool(np.isinf(numbers.astype(scale.dtype).astype(np.float64)).any())


def _numbers(node: ir.Node) -> np.ndarray | None:
    """Return what a DequantizeLinear makes of a constant, in double; None if its operands do not fit together."""
    stored, scale = constant(node.inputs[0]), array(node.inputs[1])
    zero = array(node.inputs[2]) if len(node.inputs) > 2 else None
    zero = np.zeros((), np.int8) if zero is None else zero
    if stored is None or scale is None or scale.ndim > 1 or zero.size not in (1, scale.size):
        return None
    shape, axis = [1] * stored.ndim, node.attributes.get_int("axis", 1)
    if scale.size != 1:
        if not -stored.ndim <= axis < stored.ndim or stored.shape[axis] != scale.size:
            return None
        shape[axis] = -1
    shift, factor = (one.astype(np.float64).reshape(shape if one.size > 1 else ()) for one in (zero, scale))
    found: np.ndarray = (stored.astype(np.float64) - shift) * factor
    return found
