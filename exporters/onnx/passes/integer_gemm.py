"""Fuse quantized linear layers into ONNX Runtime's integer product."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.onnx.isa import ANY, Isa
from exporters.onnx.passes.graph import (
    bias_behind,
    constant,
    initializer,
    is_op,
    producer,
    replace_chain,
    stored_matrix,
)

__all__ = ["INT16_MAX", "IntegerGemmPass", "largest_pair", "may_saturate"]

INT16_MAX = 2**15 - 1
"""The largest sum of a pair of products that CPUs without VNNI compute exactly."""


class IntegerGemmPass(ir.passes.InPlacePass):
    """Fuse ``MatMul(DequantizeLinear(x), DequantizeLinear(W)) [+ bias]`` into com.microsoft's MatMulIntegerToFloat.

    The bias becomes an input of the product, which also prevents ONNX Runtime's fusions for float graphs
    (SkipLayerNormalization, BiasGelu): they are slower than the plain operators on CPUs.

    Case 1: uint8 activations with one scale, static or from DynamicQuantizeLinear; int8 weights ``(in, out)`` with one
    scale or one per column, and zero points of 0.
    Case 2: As case 1, but a CPU without VNNI could saturate on these weights, because ``QuantSpec.overflow_safe`` is
    off: the weights are stored in uint8 with the zero point 128, for which kernels are exact on every CPU.
    Case 3: A bias is added right after: it becomes an input of the product.
    Case 4: Anything else: nothing changes, and the product stays in float.
    Case 5: As case 1, with a weight that the product reads through a Transpose from a shared table. For a CPU without
    VNNI the table is in uint8 already (:mod:`exporters.onnx.passes.unsigned_tables`), or the product stays in float.
    Case 6: A CPU that never saturates: int8 weights of any values. On Arm the activations are int8 as well.

    Args:
        isa: Instruction set of the CPUs that the file is for.
    """

    def __init__(self, isa: Isa = ANY) -> None:
        super().__init__()
        self._isa = isa

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse every product of case 1 to 3, 5 or 6."""
        modified = False
        for node in list(model.graph):
            if is_op(node, "MatMul"):
                modified |= _try_fuse(model.graph, node, self._isa)
        if modified:
            model.graph.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified)


def _try_fuse(graph: ir.Graph, matmul: ir.Node, isa: Isa) -> bool:
    x, w = (producer(value, "DequantizeLinear") for value in matmul.inputs)
    if x is None or w is None or min(len(x.inputs), len(w.inputs)) < 3:
        return False  # case 4
    weight, zeros, scales = stored_matrix(w.inputs[0]), constant(w.inputs[2]), constant(w.inputs[1])
    is_shared = producer(w.inputs[0], "Transpose") is not None  # case 5
    if weight is None or zeros is None or scales is None or not _is_one_grid(x.inputs[2], isa):
        return False  # case 4
    per_column = scales.ndim == 0 or (scales.ndim == 1 and w.attributes.get_int("axis", 1) % 2 == 1)
    is_shifted = is_shared and weight.dtype == np.uint8 and bool((zeros == 128).all())
    if not is_shifted and (weight.dtype != np.int8 or zeros.any()):
        return False  # case 4
    if not per_column:
        return False  # case 4
    stored, w_zero = w.inputs[0], w.inputs[2] if is_shifted else None
    # A weight zero point of None is left out, which the kernel takes for 0.
    if not is_shifted and isa.saturates and may_saturate(weight):  # case 2; else case 6
        if is_shared:
            return False  # case 5
        assert stored is not None
        stored = initializer(graph, f"{stored.name}_unsigned", (weight.astype(np.int16) + 128).astype(np.uint8))
        w_zero = initializer(graph, f"{matmul.name}_weight_zero_point", np.full(scales.shape, 128, np.uint8))
    inputs = [x.inputs[0], stored, x.inputs[1], w.inputs[1], x.inputs[2], w_zero]
    last, bias = bias_behind(matmul, weight.shape[1])
    inputs += [bias] if bias is not None else []  # case 3
    fused = ir.node("MatMulIntegerToFloat", inputs, domain="com.microsoft", name=matmul.name)
    replace_chain(graph, fused, matmul, last)
    for node in (x, w):
        if not node.outputs[0].uses() and not node.outputs[0].is_graph_output():
            graph.remove(node, safe=True)
    return True


def _is_one_grid(zero_point: ir.Value | None, isa: Isa) -> bool:
    """Return whether a zero point is that of an activation with one scale and the type that the kernels take."""
    if producer(zero_point, "DynamicQuantizeLinear") is not None:
        return True
    array = constant(zero_point)
    wanted = np.int8 if isa.signed_activations else np.uint8
    return array is not None and array.dtype == wanted and array.ndim == 0


def may_saturate(weight: np.ndarray) -> bool:
    """Return whether ``255 * (w[k] + w[k + 1])`` can exceed int16 for a weight ``(in, out)``, in either alignment."""
    return largest_pair(weight) > INT16_MAX


def largest_pair(weight: np.ndarray) -> int:
    """Return the largest magnitude of ``255 * (w[k] + w[k + 1])`` in a weight ``(in, out)``."""
    pairs = np.abs(weight[1:].astype(np.int32) + weight[:-1])
    return int(pairs.max(initial=0)) * 255
