"""What an engine really computes in int8: which kernel each product, attention and residual addition went into."""

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
# Integers are read, and become floats before they are multiplied.
_CAST_FIRST = re.compile(r"__myl_\w*Cast\w*?(Fc|MatMul|Conv)")
_EIGHT_BITS = ("int8", "fp8")


@dataclass(frozen=True)
class ProductRow:
    """A matrix product.

    Args:
        name: its module.
        kind: ``linear`` or ``attention``.
        wanted: what the file asks for: ``int8``, ``fp8``, ``float``.
        runs_in: element type of what its kernel multiplies; ``unknown`` when no kernel names it.
        kernel: TensorRT's name for it.
        reason: why it does not run in what was wanted; empty when it does.
    """

    name: str
    kind: str
    wanted: str
    runs_in: str
    kernel: str
    reason: str = ""

    @property
    def as_wanted(self) -> bool:
        """Whether it runs in 8 bits when the file asks for that."""
        return self.wanted in ("float", self.runs_in)


@dataclass(frozen=True)
class AttentionRow:
    """An attention: one kernel for both products and the softmax, or several."""

    name: str
    fused: bool
    runs_in: str
    kernel: str
    reason: str = ""


@dataclass(frozen=True)
class MergedRow:
    """Linear layers that read one tensor (query, key, value): one GEMM, or several."""

    names: tuple[str, ...]
    merged: bool


@dataclass(frozen=True)
class ResidualRow:
    """A residual addition: in one kernel with the normalization behind or the GEMM before it, or on its own."""

    name: str
    fused: bool
    kernel: str


@dataclass(frozen=True)
class EngineReport:
    """The report of :func:`engine_report`.

    Args:
        kernels: how many the engine has.
        products: one for each product.
        attentions: one for each attention.
        merged: one for each group of layers that read one tensor.
        residuals: one for each residual addition.
        precision: element type of what is not quantized.
    """

    kernels: int
    products: Sequence[ProductRow] = field(default_factory=tuple)
    attentions: Sequence[AttentionRow] = field(default_factory=tuple)
    merged: Sequence[MergedRow] = field(default_factory=tuple)
    residuals: Sequence[ResidualRow] = field(default_factory=tuple)
    precision: str = "fp32"

    def count(self, kind: str) -> tuple[int, int, int]:
        """Of the ``linear`` or ``attention`` products: run in 8 bits, wanted in 8 bits, all."""
        rows = [row for row in self.products if row.kind == kind]
        wanted = [row for row in rows if row.wanted in _EIGHT_BITS]
        return sum(row.as_wanted for row in wanted), len(wanted), len(rows)

    @property
    def missed(self) -> list[ProductRow]:
        """Products that the recipe wants in 8 bits and that run in something else."""
        return [row for row in self.products if not row.as_wanted]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
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
        """Back from :meth:`to_dict`."""
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
    """Lay the kernels over the graph that they were made of.

    Args:
        model: the graph that was built; its weights are not read.
        kernels: of the engine, see :mod:`exporters.tensorrt.kernels`.
        reasons: what :func:`exporters.tensorrt.lint.lint` found, by name of the node: why something may not run as
            it should.
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
    """What is left to say where the lint finds nothing."""
    if attention.scores.wanted == "float" and computed_in.name == "FLOAT":
        return "it is computed in float32, for which there is no such kernel: export with --dtype fp16, or quantize it"
    return "TensorRT chose kernels of its own for scores, softmax and context"


class _Index:
    """Kernels by the ONNX nodes that went into them."""

    def __init__(self, kernels: Sequence[Kernel]) -> None:
        self._of: dict[str, list[Kernel]] = {}
        for kernel in kernels:
            for node in kernel.nodes:
                self._of.setdefault(node, []).append(kernel)

    def kernel(self, node: ir.Node) -> Kernel | None:
        """The kernel that does the work of ``node``; others may hold a rest of it, a scale or a bias."""
        found = self._of.get(str(node.name), [])
        working = [kernel for kernel in found if _PRODUCT_KERNEL.search(f"{kernel.kind} {kernel.name}")]
        if node.op_type in ("MatMul", "Gemm", "Conv") and working:
            return working[0]
        return found[0] if found else None

    def name(self, node: ir.Node) -> str:
        """Of its kernel, or nothing."""
        kernel = self.kernel(node)
        return "" if kernel is None else kernel.name

    def shares(self, node: ir.Node, others: Sequence[ir.Node]) -> bool:
        """Whether a kernel that holds ``node`` holds one of ``others`` too."""
        names = {str(other.name) for other in others}
        return any(names & set(kernel.nodes) for kernel in self._of.get(str(node.name), []))


class _Reasons:
    """Findings of the lint, by module."""

    def __init__(self, reasons: Mapping[str, Sequence[str]]) -> None:
        self._of: dict[str, list[str]] = {}
        for node, lines in reasons.items():
            self._of.setdefault(module_of(node), []).extend(lines)

    def of(self, *nodes: ir.Node) -> str:
        """What was found at the modules of these nodes, or at their quantizers."""
        places = [module_of(node) for node in nodes]
        lines = [line for name, found in self._of.items() for line in found if _near(name, places)]
        return "; ".join(dict.fromkeys(lines))


def _near(name: str, places: Sequence[str]) -> bool:
    return any(name == own or (own and name.startswith(f"{own}.") and name.endswith("_quantizer")) for own in places)


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
    """In which type a kernel multiplies: that of its weights and inputs together."""
    if kernel is None:
        return "unknown"
    for kind in () if _CAST_FIRST.match(kernel.name) else _EIGHT_BITS:
        weights = not stored or not kernel.constants or kind in kernel.constants
        if kind in kernel.inputs and weights:
            return kind
    floats = [kind for kind in (*kernel.inputs, *kernel.constants, *kernel.outputs) if kind in ("fp16", "bf16", "fp32")]
    return floats[0] if floats else "unknown"


def _beside(add: ir.Node) -> list[ir.Node]:
    """The normalization behind an addition, and the products before it."""
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
