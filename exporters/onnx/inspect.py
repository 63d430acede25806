"""Report which products of an ONNX file run in int8, and what the file holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from exporters.onnx.load import load_onnx
from exporters.onnx.passes.graph import is_op, is_stored, producer
from exporters.onnx.saturation import pair_sums

if TYPE_CHECKING:
    from pathlib import Path

    import onnx_ir as ir

__all__ = ["GraphReport", "Product", "inspect_graph", "model_bytes"]

_INTEGER = "int8"
_FLOAT = "float"


@dataclass(frozen=True)
class Product:
    """Describe a matrix product of the graph.

    Args:
        name: Name of the node, which is named after its module.
        kind: ``linear`` (one operand is stored) or ``attention`` (both are computed).
        runs_in: ``int8`` if both operands are quantized, else ``float``.
        why: Why a product runs in float; None if it runs in int8.
    """

    name: str
    kind: str
    runs_in: str
    why: str | None = None


@dataclass(frozen=True)
class GraphReport:
    """Hold the result of :func:`inspect_graph`.

    Args:
        opsets: Version of each operator domain.
        operators: Number of nodes of each type.
        products: Every matrix product, in graph order.
        bytes_by_type: Stored bytes of each element type.
        isa: Instruction set that the integer products are written for; None if the file does not say.
        pair_sums: For every product whose int8 weights could saturate without VNNI: the largest sum of a pair, by the
            name of its module.
    """

    opsets: dict[str, int]
    operators: dict[str, int]
    products: list[Product]
    bytes_by_type: dict[str, int]
    isa: str | None = None
    pair_sums: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def inspect_graph(path: Path) -> GraphReport:
    """Report on the file ``path`` without running it.

    Raises:
        CheckpointError: If it is not an ONNX file.
    """
    model = load_onnx(path)
    graph = model.graph
    sizes: Counter[str] = Counter()
    for value in graph.initializers.values():
        if value.const_value is not None:
            sizes[str(value.const_value.dtype)] += value.const_value.nbytes
    products = [product for node in graph if (product := _product(node)) is not None]
    operators = Counter(node.op_type if not node.domain else f"{node.domain}.{node.op_type}" for node in graph)
    return GraphReport(
        {domain or "ai.onnx": version for domain, version in graph.opset_imports.items()},
        dict(operators.most_common()),
        products,
        dict(sizes.most_common()),
        model.metadata_props.get("qdq.isa"),
        pair_sums(graph),
    )


def _product(node: ir.Node) -> Product | None:
    if node.op_type == "MatMulIntegerToFloat":
        return Product(str(node.name), "linear", _INTEGER)
    if node.op_type == "MatMulNBits":
        return Product(str(node.name), "linear", _FLOAT, "only its weight is quantized")
    if is_op(node, "Attention"):
        return Product(str(node.name), "attention", _FLOAT, "both products are in one node, which has no int8")
    if node.op_type not in ("MatMul", "Gemm", "FusedMatMul"):
        return None
    stored = [is_stored(value) for value in node.inputs[:2]]
    quantized = [_quantized(value) for value in node.inputs[:2]]
    kind = "linear" if any(stored) else "attention"
    if all(quantized):
        return Product(str(node.name), kind, _INTEGER)
    if not any(quantized):
        return Product(str(node.name), kind, _FLOAT, "neither operand is quantized")
    (index,) = [index for index, is_quantized in enumerate(quantized) if not is_quantized]
    missing = "weight" if stored[index] else "input" if kind == "linear" else ("first operand", "second operand")[index]
    return Product(str(node.name), kind, _FLOAT, f"its {missing} is not quantized")


def _quantized(value: ir.Value | None) -> bool:
    """Return whether ``value`` comes from a DequantizeLinear, maybe through a change of shape."""
    node = producer(value, "DequantizeLinear", "Transpose", "Reshape")
    return node is not None and (node.op_type == "DequantizeLinear" or _quantized(node.inputs[0]))


def model_bytes(path: Path) -> int:
    """Return the size of an ONNX file, with the weights that a large file keeps beside it."""
    beside = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)
