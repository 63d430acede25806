"""What CPUs of x86 without VNNI do to integer products: sums of pairs of products are cut to 16 bits.

Their kernels take the bytes of a row in neighbouring pairs, uint8 x int8, and add the two products in int16, saturated
(``vpmaddubsw``); all further sums have 32 bits. Products of two uint8 are widened first, and exact. Here the same is
done in numpy, to tell which products of a file are at risk and how often it happens.
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

__all__ = ["AtRisk", "Saturated", "at_risk", "pair_sums", "pairs_note", "saturated_pairs"]

_INT16_MIN = -(2**15)
_NAMED = 3  # products, in a sentence for people
_ELEMENTS = 1 << 22  # of products held at once


@dataclass(frozen=True)
class AtRisk:
    """A product of uint8 activations and int8 weights on which pair sums could leave 16 bits.

    Args:
        name: of its module.
        activations: name of the value with the integers of the activation ``(..., in)``.
        weight: int8 ``(in, out)``.
        worst: the largest pair sum that any activation could reach.
    """

    name: str
    activations: str
    weight: np.ndarray
    worst: int


@dataclass(frozen=True)
class Saturated:
    """What happened to one product with the activations at hand.

    Args:
        name: of the product.
        pairs: how many pair sums there were.
        saturated: how many of them left 16 bits.
        worst: the largest magnitude that one of them reached; the limit is 32767.
        possible: the largest that any activation could reach.
    """

    name: str
    pairs: int
    saturated: int
    worst: int
    possible: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def at_risk(graph: ir.Graph) -> list[AtRisk]:
    """The products of a file that could saturate, in graph order.

    Case 1: MatMulIntegerToFloat with int8 weights. Case 2: MatMul of two DequantizeLinear, which runtimes fuse to it.
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
        zero = constant(zero_point)  # none that is known: of DynamicQuantizeLinear, which makes uint8
        if x is None or weight is None or weight.dtype != np.int8 or (zero is not None and zero.dtype != np.uint8):
            continue
        worst = largest_pair(weight)
        if worst > INT16_MAX:
            found.append(AtRisk(_module(node), str(x.name), weight, worst))
    return found


def _module(node: ir.Node) -> str:
    """``encoder.layers.0.attention.query`` of the node ``encoder.layers.0.attention.query/MatMul``."""
    return str(node.name).rpartition("/")[0] or str(node.name)


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def pair_sums(graph: ir.Graph) -> dict[str, int]:
    """Integer products whose int8 weights could saturate without VNNI: the largest sum of a pair, by module.

    Whatever the file does about it: weights that it holds in uint8 for this reason, and activations in int8, count.
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


def pairs_note(sums: Mapping[str, int], isa: Isa) -> list[str]:
    """A sentence about the products of :func:`pair_sums`, and what was done about them; nothing when there are none."""
    if not sums:
        return []
    worst = sorted(sums, key=lambda name: -sums[name])
    names = ", ".join(f"{name} ({sums[name]})" for name in worst[:_NAMED])
    names += f" and {len(worst) - _NAMED} more" if len(worst) > _NAMED else ""
    if isa.saturates:
        done = "their weights are held in uint8, which is exact on every CPU and slower than int8"
    elif isa.signed_activations:
        done = f"the file is for {isa.name}, where sums have 32 bits"
    else:
        done = f"the file is for {isa.name} alone, where sums have 32 bits: elsewhere it may be wrong"
    return [
        f"Without VNNI, sums of pairs of products could leave 16 bits (limit {INT16_MAX}) in {names}; {done}. "
        "A weight spec with overflow_safe: true leaves no such pair."
    ]


def saturated_pairs(product: AtRisk, activations: np.ndarray) -> Saturated:
    """Count, exactly, the pair sums that would be cut.

    Args:
        product: from :func:`at_risk`.
        activations: uint8 ``(..., in)``.
    """
    rows = activations.reshape(-1, activations.shape[-1]).astype(np.int32)
    weight = product.weight.astype(np.int32)
    if len(weight) % 2:  # the kernels fill up with zeros
        rows, weight = np.pad(rows, ((0, 0), (0, 1))), np.pad(weight, ((0, 1), (0, 0)))
    # Only columns with a pair that can leave 16 bits need a look.
    able = np.abs(weight[0::2] + weight[1::2]).max(axis=0, initial=0) * 255 > INT16_MAX
    risky = weight[:, able]
    pairs, cut, worst = rows.shape[0] * (rows.shape[1] // 2) * weight.shape[1], 0, 0
    step = max(1, _ELEMENTS // max(1, risky.size))
    for start in range(0, len(rows), step):
        chunk = rows[start : start + step, :, np.newaxis]
        sums = chunk[:, 0::2] * risky[0::2] + chunk[:, 1::2] * risky[1::2]
        cut += int(((sums > INT16_MAX) | (sums < _INT16_MIN)).sum())
        worst = max(worst, int(np.abs(sums).max(initial=0)))
    return Saturated(product.name, pairs, cut, worst, product.worst)
