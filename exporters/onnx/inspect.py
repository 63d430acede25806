"""Report which products of an ONNX file run in int8, and what the file holds."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from exporters.onnx.load import load_onnx
from exporters.onnx.products import Product, products_of
from exporters.onnx.saturation import pair_sums
from exporters.onnx.walk import inline_functions, stored_tensors

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["GraphReport", "Product", "inspect_graph", "model_bytes"]


@dataclass(frozen=True)
class GraphReport:
    """Hold the result of :func:`inspect_graph`.

    Args:
        opsets: Version of each operator domain.
        operators: Number of nodes of each type, those of functions and subgraphs included.
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
    sizes: Counter[str] = Counter()
    for tensor in stored_tensors(model):  # a function is stored once, however often it is called
        sizes[str(tensor.dtype)] += tensor.nbytes
    inline_functions(model, str(path), any_opset=True)
    nodes = list(model.graph.all_nodes())
    operators = Counter(node.op_type if not node.domain else f"{node.domain}.{node.op_type}" for node in nodes)
    return GraphReport(
        {domain or "ai.onnx": version for domain, version in model.graph.opset_imports.items()},
        dict(operators.most_common()),
        [product for node in nodes for product in products_of(node)],
        dict(sizes.most_common()),
        model.metadata_props.get("qdq.isa"),
        pair_sums(model.graph),
    )


def model_bytes(path: Path) -> int:
    """Return the size of an ONNX file, with the weights that a large file keeps beside it."""
    beside = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)
