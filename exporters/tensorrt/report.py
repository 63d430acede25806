"""Report what an engine computes in int8: the kernel of each product, attention and residual addition."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from exporters.tensorrt.graph_structure import Attention, GraphStructure, Product, consumers, module_of, title

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import onnx_ir as ir

    from exporters.tensorrt.kernels import Kernel

__all__ = ["AttentionRow", "EngineReport", "MergedRow", "ProductRow", "ResidualRow", "engine_report"]

_PRODUCT_KERNEL = re.compile(r"gemm|mha|MatMul|Conv|Fc|conv")
# Kernels that read integers but cast them to float before they multiply.
_CAST_FIRST = re.compile(r"__myl_\w*Cast\w*?(Fc|MatMul|Conv)")
_EIGHT_BITS = ("int8", "fp8")


@dataclass(frozen=True)
class ProductRow:
    """Describe the kernel of a matrix product.

    Args:
        name: Name of its module.
        kind: ``linear`` or ``attention``.
        wanted: Type that the file asks for: ``int8``, ``fp8`` or ``float``.
        runs_in: Type in which its kernel multiplies; ``unknown`` if no kernel names the product.
        kernel: TensorRT's name of the kernel.
        reason: Why it does not run in the wanted type; empty if it does.
    """

    name: str
    kind: str
    wanted: str
    runs_in: str
    kernel: str
    reason: str = ""

    @property
    def as_wanted(self) -> bool:
        """Whether it runs in the wanted type, if that has 8 bits."""
        return self.wanted in ("float", self.runs_in)


@dataclass(frozen=True)
class AttentionRow:
    """Describe the kernel of an attention.

    Args:
        name: Name of its module.
        fused: Whether one kernel computes both products and the softmax.
        runs_in: Type in which the kernel multiplies.
        kernel: TensorRT's name of the kernel of the scores.
        reason: Why it is not fused; empty if it is.
    """

    name: str
    fused: bool
    runs_in: str
    kernel: str
    reason: str = ""


@dataclass(frozen=True)
class MergedRow:
    """Describe linear layers that read the same tensor, such as query, key and value.

    Args:
        names: Names of their modules.
        merged: Whether one kernel computes them all.
    """

    names: tuple[str, ...]
    merged: bool


@dataclass(frozen=True)
class ResidualRow:
    """Describe the kernel of a residual addition.

    Args:
        name: Name of its module.
        fused: Whether the kernel also computes the normalization behind it or the product before it.
        kernel: TensorRT's name of the kernel.
    """

    name: str
    fused: bool
    kernel: str


@dataclass(frozen=True)
class EngineReport:
    """Hold the result of :func:`engine_report`.

    Args:
        kernels: Number of kernels of the engine.
        products: One row for each product.
        attentions: One row for each attention.
        merged: One row for each group of layers that read the same tensor.
        residuals: One row for each residual addition.
        precision: Type of what is not quantized.
    """

    kernels: int
    products: Sequence[ProductRow] = field(default_factory=tuple)
    attentions: Sequence[AttentionRow] = field(default_factory=tuple)
    merged: Sequence[MergedRow] = field(default_factory=tuple)
    residuals: Sequence[ResidualRow] = field(default_factory=tuple)
    precision: str = "fp32"

    def count(self, kind: str) -> tuple[int, int, int]:
        """Count the ``linear`` or ``attention`` products: those that run in 8 bits, those that should, and all."""
        rows = [row for row in self.products if row.kind == kind]
        wanted = [row for row in rows if row.wanted in _EIGHT_BITS]
        return sum(row.as_wanted for row in wanted), len(wanted), len(rows)

    @property
    def missed(self) -> list[ProductRow]:
        """Products that should run in 8 bits and do not."""
        return [row for row in self.products if not row.as_wanted]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        counts = {kind: dict(zip(("in_8_bits", "wanted", "all"), self.count(kind), strict=True)) for kind in _KINDS}
        return {
            "counts": counts,
            "attentions_fused": sum(row.fused for row in self.attentions),
            "merged_groups": sum(row.merged for row in self.merged),
            "residuals_fused": sum(row.fused for row in self.residuals),
            **asdict(self),
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> EngineReport:
        """Read what :meth:`to_dict` returned."""
        return cls(
            document["kernels"],
            tuple(ProductRow(**row) for row in document["products"]),
            tuple(AttentionRow(**row) for row in document["attentions"]),
            tuple(MergedRow(tuple(row["names"]), row["merged"]) for row in document["merged"]),
            tuple(ResidualRow(**row) for row in document["residuals"]),
            document["precision"],
        )


_KINDS = ("linear", "attention")


def engine_report(
    model: ir.Model, kernels: Sequence[Kernel], reasons: Mapping[str, Sequence[str]] | None = None
) -> EngineReport:
    """Assign the kernels of an engine to the products, attentions and additions of its graph.

    Args:
        model: The graph that was built. Its weights are not read.
        kernels: The kernels of the engine; see :mod:`exporters.tensorrt.kernels`.
        reasons: Findings of :func:`exporters.tensorrt.lint.lint.lint` by name of the node, which explain why something
            does not run as it should.
    """
    structure = GraphStructure(model)
    index = _Index(kernels)
    why = _Reasons(reasons or {})
    products = tuple(_product_row(product, index, why) for product in structure.products)
    attentions = []
    for attention in structure.attentions:
        nodes = (attention.scores.node, attention.softmax, attention.context.node)
        own = [index.kernel(node) for node in nodes]
        fused = own[0] is not None and all(kernel is own[0] for kernel in own)
        runs_in = _multiplied(own[0], stored=False) if fused else "unknown"
        attentions.append(
            AttentionRow(
                attention.module,
                fused,
                runs_in if fused else _multiplied(own[2], stored=False),
                "" if own[0] is None else own[0].name,
                "" if fused else why.of(*nodes) or _why_split(attention, structure.element_type),
            )
        )
    merged = [
        MergedRow(
            tuple(module_of(product.node) for product in group),
            len({index.name(product.node) for product in group}) == 1 and index.kernel(group[0].node) is not None,
        )
        for group in structure.siblings
    ]
    residuals = [
        ResidualRow(
            module_of(residual.node), index.shares(residual.node, _beside(residual.node)), index.name(residual.node)
        )
        for residual in structure.residuals
    ]
    return EngineReport(
        len(kernels),
        products,
        tuple(attentions),
        tuple(merged),
        tuple(residuals),
        {"FLOAT": "fp32", "FLOAT16": "fp16", "BFLOAT16": "bf16"}[structure.element_type.name],
    )


def _why_split(attention: Attention, computed_in: ir.DataType) -> str:
    """Return why an attention is split if the lint found nothing."""
    if attention.scores.wanted == "float" and computed_in.name == "FLOAT":
        return "it is computed in float32, for which there is no such kernel: export with --dtype fp16, or quantize it"
    return "TensorRT chose kernels of its own for scores, softmax and context"


class _Index:
    """Find kernels by the ONNX nodes that they compute."""

    def __init__(self, kernels: Sequence[Kernel]) -> None:
        self._of: dict[str, list[Kernel]] = {}
        for kernel in kernels:
            for node in kernel.nodes:
                self._of.setdefault(node, []).append(kernel)

    def kernel(self, node: ir.Node) -> Kernel | None:
        """Return the main kernel of ``node``. Others may compute a part of it, such as a scale or a bias."""
        found = self._of.get(str(node.name), [])
        working = [kernel for kernel in found if _PRODUCT_KERNEL.search(f"{kernel.kind} {kernel.name}")]
        if node.op_type in ("MatMul", "Gemm", "Conv") and working:
            return working[0]
        return found[0] if found else None

    def name(self, node: ir.Node) -> str:
        """Return the name of the kernel of ``node``, empty if there is none."""
        kernel = self.kernel(node)
        return "" if kernel is None else kernel.name

    def shares(self, node: ir.Node, others: Sequence[ir.Node]) -> bool:
        """Return whether a kernel computes both ``node`` and one of ``others``."""
        names = {str(other.name) for other in others}
        return any(names & set(kernel.nodes) for kernel in self._of.get(str(node.name), []))


class _Reasons:
    """Find the findings of the lint by module."""

    def __init__(self, reasons: Mapping[str, Sequence[str]]) -> None:
        self._of: dict[str, list[str]] = {}
        for node, lines in reasons.items():
            self._of.setdefault(module_of(node), []).extend(lines)

    def of(self, *nodes: ir.Node) -> str:
        """Return the findings at the modules of these nodes, or at their quantizers."""
        modules = [module_of(node) for node in nodes]
        lines = [line for name, found in self._of.items() for line in found if _belongs_to(name, modules)]
        return "; ".join(dict.fromkeys(lines))


def _belongs_to(name: str, modules: Sequence[str]) -> bool:
    return any(name == own or (own and name.startswith(f"{own}.") and name.endswith("_quantizer")) for own in modules)


def _product_row(product: Product, index: _Index, why: _Reasons) -> ProductRow:
    kernel = index.kernel(product.node)
    row = ProductRow(
        module_of(product.node) or title(product.node),
        "linear" if product.is_linear else "attention",
        product.wanted,
        _multiplied(kernel, stored=product.is_linear),
        "" if kernel is None else kernel.name,
    )
    if row.as_wanted:
        return row
    reason = why.of(product.node) or "TensorRT chose another kernel"
    return ProductRow(row.name, row.kind, row.wanted, row.runs_in, row.kernel, reason)


def _multiplied(kernel: Kernel | None, *, stored: bool) -> str:
    """Return the type in which a kernel multiplies, which is that of both its weights and its inputs."""
    if kernel is None:
        return "unknown"
    # int8 inputs do not mean int8 arithmetic: a kernel may read int8 and multiply in float.
    for kind in () if _CAST_FIRST.match(kernel.name) else _EIGHT_BITS:
        weights = not stored or not kernel.constants or kind in kernel.constants
        if kind in kernel.inputs and weights:
            return kind
    floats = [kind for kind in (*kernel.inputs, *kernel.constants, *kernel.outputs) if kind in ("fp16", "bf16", "fp32")]
    return floats[0] if floats else "unknown"


def _beside(add: ir.Node) -> list[ir.Node]:
    """Return the normalization behind an addition, and the products before it."""
    found = consumers(add.outputs[0], "LayerNormalization")
    for value in add.inputs:
        node = None if value is None else value.producer()
        for _ in range(3):
            if node is None or node.op_type in ("MatMul", "Gemm"):
                break
            node = next((made for side in node.inputs if side is not None and (made := side.producer())), None)
        if node is not None and node.op_type in ("MatMul", "Gemm"):
            found.append(node)
    return found
