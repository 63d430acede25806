"""Write products with stored integer weights and float activations as ONNX Runtime's weight-only product."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.onnx.passes.graph import bias_behind, constant, initializer, is_op, producer, put_in_place

__all__ = ["WeightOnlyGemmPass"]

_SMALLEST_BLOCK = 16  # of the kernels; a power of two
_BLOCK = 128  # for weights whose columns have one scale each
_IN_FLOAT32 = 1  # accuracy_level: left to itself, ONNX Runtime rounds the activations to int8


class WeightOnlyGemmPass(ir.passes.InPlacePass):
    """Fuse ``MatMul(x, DequantizeLinear(W)) [+ bias]`` into com.microsoft's MatMulNBits.

    ONNX Runtime makes this fusion itself, and then rounds the activations to 8 bits, which nobody asked for. Written
    out, the product is computed in float32, and 4-bit weights take half a byte.

    Case 1: a weight ``(in, out)`` with a scale for every block of values on the first axis. Case 2: with a scale for
    each column, or one: every block of a column gets it. Case 3: all integers fit 4 bits: two are stored in a byte.
    Case 4: a bias is added right after: it becomes an input of the product. Case 5: an activation that is quantized, a
    block that the kernels do not have, or anything else: left as it is.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse."""
        modified = False
        for node in list(model.graph):
            if is_op(node, "MatMul"):
                modified |= _try_fuse(model.graph, node)
        if modified:
            model.graph.opset_imports["com.microsoft"] = 1
        return ir.passes.PassResult(model, modified)


def _try_fuse(graph: ir.Graph, matmul: ir.Node) -> bool:
    x, w = matmul.inputs[0], producer(matmul.inputs[1], "DequantizeLinear")
    if w is None or len(w.inputs) < 3 or producer(x, "DequantizeLinear") is not None:
        return False  # case 5
    weight, scale, zero = (constant(value) for value in w.inputs[:3])
    if weight is None or scale is None or zero is None or weight.ndim != 2:
        return False  # case 5
    rows, columns = weight.shape
    block, axis = w.attributes.get_int("block_size", 0), w.attributes.get_int("axis", 1) % 2
    if block and (axis or block < _SMALLEST_BLOCK or block & (block - 1)):
        return False  # case 5
    if not block:  # case 2
        if scale.ndim and axis != 1:
            return False  # case 5
        block = _BLOCK
        scale, zero = (np.broadcast_to(array, (-(-rows // block), columns)) for array in (scale, zero))
    shift = 128 if weight.dtype == np.int8 else 0
    integers, zeros = weight.astype(np.int16) + shift, zero.astype(np.int16) + shift
    bits = 8
    if shift and _fits_four_bits(weight, zero):  # case 3
        bits, integers, zeros = 4, integers - 120, zeros - 120
    elif not shift and _fits_four_bits(weight.astype(np.int16) - 8, zero.astype(np.int16) - 8):  # case 3
        bits = 4
    name = matmul.name
    inputs = [
        x,
        initializer(graph, f"{name}_weight", _packed(_blocks(integers, block, fill=1 << (bits - 1)), bits)),
        initializer(graph, f"{name}_scale", np.ascontiguousarray(scale.T, dtype=np.float32)),
        initializer(graph, f"{name}_zero_point", _packed(_even(zeros.T, bits), bits)),
    ]
    last, bias = bias_behind(matmul, columns)
    inputs += [None, bias] if bias is not None else []  # case 4
    attributes = {"K": rows, "N": columns, "bits": bits, "block_size": block, "accuracy_level": _IN_FLOAT32}
    fused = ir.node("MatMulNBits", inputs, attributes, domain="com.microsoft", name=name)
    put_in_place(graph, fused, matmul, last)
    if not w.outputs[0].uses() and not w.outputs[0].is_graph_output():
        graph.remove(w, safe=True)
    return True


def _fits_four_bits(integers: np.ndarray, zeros: np.ndarray) -> bool:
    return all(bool(((array >= -8) & (array <= 7)).all()) for array in (integers, zeros))


def _blocks(integers: np.ndarray, block: int, *, fill: int) -> np.ndarray:
    """``(in, out)`` -> ``(out, blocks, block)``, the last block filled up."""
    rows, columns = integers.shape
    padded = np.pad(integers.T, ((0, 0), (0, -rows % block)), constant_values=fill)
    return padded.reshape(columns, -1, block)


def _even(zeros: np.ndarray, bits: int) -> np.ndarray:
    """Zero points ``(out, blocks)``, of 4 bits filled up to whole bytes."""
    return np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2))) if bits == 4 else zeros


def _packed(values: np.ndarray, bits: int) -> np.ndarray:
    """Bytes: of 4 bits two neighbours on the last axis in each, the first one low."""
    values = np.ascontiguousarray(values).astype(np.uint8)
    return values if bits == 8 else values[..., ::2] | (values[..., 1::2] << 4)
