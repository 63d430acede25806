"""Find out which integer products saturate on x86 CPUs without VNNI, and how often.

The kernels of these CPUs take the bytes of a row in neighboring pairs, uint8 x int8, and add the two products in
int16, saturated (``vpmaddubsw``). All further sums have 32 bits. Products of two uint8 are widened first and are exact.
This module does the same in numpy.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.onnx.passes.graph import constant, producer, stored_matrix
from exporters.onnx.passes.integer_gemm import INT16_MAX, largest_pair

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from exporters.onnx.isa import Isa

__all__ = ["RiskyProduct", "SaturationCount", "count_saturated_pairs", "pair_sums", "risky_products", "saturation_note"]

_INT16_MIN = -(2**15)
_NAMED = 3  # products that a sentence for people names
_ELEMENTS = 1 << 22  # products of two integers that are in memory at once


@dataclass(frozen=True)
class RiskyProduct:
    """Describe a product of uint8 activations and int8 weights whose pair sums could exceed 16 bits.

    Args:
        name: Name of its module.
        activations: Name of the value that holds the integers of the activation ``(..., in)``.
        weight: The int8 weight ``(in, out)``.
        worst: The largest pair sum that any activation could reach.
    """

    name: str
    activations: str
    weight: np.ndarray
    worst: int


@dataclass(frozen=True)
class SaturationCount:
    """Count the saturated pair sums of one product for given activations.

    Args:
        name: Name of the product.
        pairs: Number of pair sums.
        saturated: Number of pair sums that exceed 16 bits.
        worst: Largest magnitude of a pair sum; the limit is 32767.
        possible: Largest magnitude that any activation could reach.
    """

    name: str
    pairs: int
    saturated: int
    worst: int
    possible: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def risky_products(graph: ir.Graph) -> list[RiskyProduct]:
    """Return the products of a file that could saturate, in graph order.

    Case 1: MatMulIntegerToFloat with int8 weights.
    Case 2: MatMul of two DequantizeLinear nodes, which runtimes fuse into the same kernel.
    """
    found = []
    for node in graph:
        if node.op_type == "MatMulIntegerToFloat":  # case 1
            x, w, zero_point = (_input(node, index) for index in (0, 1, 4))
        elif node.op_type == "MatMul":  # case 2
            left, right = (producer(value, "DequantizeLinear") for value in node.inputs)
            if left is None or right is None:
                continue
            x, w, zero_point = _input(left, 0), _input(right, 0), _input(left, 2)
        else:
            continue
        weight = stored_matrix(w)
        zero = constant(zero_point)  # None for DynamicQuantizeLinear, which always gives uint8
        if x is None or weight is None or weight.dtype != np.int8 or (zero is not None and zero.dtype != np.uint8):
            continue
        worst = largest_pair(weight)
        if worst > INT16_MAX:
            found.append(RiskyProduct(_module(node), str(x.name), weight, worst))
    return found


def _module(node: ir.Node) -> str:
    """Return ``encoder.layers.0.attention.query`` for the node ``encoder.layers.0.attention.query/MatMul``."""
    return str(node.name).rpartition("/")[0] or str(node.name)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def pair_sums(graph: ir.Graph) -> dict[str, int]:
    """Return the largest sum of a pair for every product whose int8 weights could saturate without VNNI, by module.

    Products that the file already protects count as well: those with weights in uint8, or activations in int8.
    """
    found = {}
    for node in graph:
        if node.op_type != "MatMulIntegerToFloat":
            continue
        weight = stored_matrix(node.inputs[1])
        if weight is None:
            continue
        sums = largest_pair(weight.astype(np.int16) - 128 if weight.dtype == np.uint8 else weight)
        if sums > INT16_MAX:
            found[_module(node)] = sums
    return found


def saturation_note(sums: Mapping[str, int], isa: Isa) -> list[str]:
    """Describe the products of :func:`pair_sums` and what was done about them; return nothing if there are none."""
    if not sums:
        return []
    worst = sorted(sums, key=lambda name: -sums[name])
    names = ", ".join(f"{name} ({sums[name]})" for name in worst[:_NAMED])
    names += f" and {len(worst) - _NAMED} more" if len(worst) > _NAMED else ""
    if isa.saturates:
        done = "their weights are stored in uint8, which is exact on every CPU and slower than int8"
    elif isa.signed_activations:
        done = f"the file is for {isa.name}, where sums have 32 bits"
    else:
        done = f"the file is for {isa.name} alone, where sums have 32 bits: elsewhere it may be wrong"
    return [
        f"Without VNNI, sums of pairs of products could exceed 16 bits (limit {INT16_MAX}) in {names}; {done}. "
        "A weight spec with overflow_safe: true avoids such pairs."
    ]


def count_saturated_pairs(product: RiskyProduct, activations: np.ndarray) -> SaturationCount:
    """Count the pair sums that would saturate. The count is exact.

    Args:
        product: A product from :func:`risky_products`.
        activations: Its activations, uint8 ``(..., in)``.
    """
    rows = activations.reshape(-1, activations.shape[-1]).astype(np.int32)
    weight = product.weight.astype(np.int32)
    if len(weight) % 2:  # the kernels pad an odd row with zeros
        rows, weight = np.pad(rows, ((0, 0), (0, 1))), np.pad(weight, ((0, 1), (0, 0)))
    # A column without a pair that can exceed 16 bits need not be computed.
    risky_columns = np.abs(weight[0::2] + weight[1::2]).max(axis=0, initial=0) * 255 > INT16_MAX
    risky = weight[:, risky_columns]
    pairs, saturated, worst = rows.shape[0] * (rows.shape[1] // 2) * weight.shape[1], 0, 0
    step = max(1, _ELEMENTS // max(1, risky.size))
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step, :, np.newaxis]
        sums = chunk[:, 0::2] * risky[0::2] + chunk[:, 1::2] * risky[1::2]
        saturated += int(((sums > INT16_MAX) | (sums < _INT16_MIN)).sum())
        worst = max(worst, int(np.abs(sums).max(initial=0)))
    return SaturationCount(product.name, pairs, saturated, worst, product.worst)
