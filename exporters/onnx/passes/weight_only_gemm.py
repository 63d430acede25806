"""Fuse products of integer weights and float activations into ONNX Runtime's weight-only product."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.onnx.passes.graph import bias_behind, constant, initializer, is_op, producer, replace_chain

__all__ = ["WeightOnlyGemmPass", "block_of"]

_SMALLEST_BLOCK = 16  # that the kernels have; blocks are powers of two
_BLOCK = 128  # for weights whose columns have one scale each
_IN_FLOAT32 = 1  # accuracy_level; by default ONNX Runtime rounds the activations to int8


class WeightOnlyGemmPass(ir.passes.InPlacePass):
    """Fuse ``MatMul(x, DequantizeLinear(W)) [+ bias]`` into com.microsoft's MatMulNBits.

    ONNX Runtime makes this fusion itself, but then rounds the activations to 8 bits. Written out, the product is
    computed in float32, and 4-bit weights take half a byte.

    Case 1: A weight ``(in, out)`` with a scale for every block of values on the first axis.
    Case 2: A weight with one scale, or one for each column: every block of a column gets it.
    Case 3: All integers fit in 4 bits: two are stored in a byte.
    Case 4: A bias is added right after: it becomes an input of the product.
    Case 5: A quantized activation, a block size that the kernels do not have, or anything else: nothing changes.
    Case 6: A uint8 table ``(out, in)`` with a scale for each row, which the product reads through a Transpose and
    others read as it is: it is stored in blocks, and a Reshape undoes them for the others when the file is loaded.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Fuse every product of case 1 to 4 or 6."""
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
    if producer(w.inputs[0], "Transpose") is not None:
        return _try_share(graph, matmul, w)
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
    # MatMulNBits takes unsigned integers: int8 values are shifted by 128, 4-bit values by 8 (128 - 120).
    shift = 128 if weight.dtype == np.int8 else 0
    integers, zeros = weight.astype(np.int16) + shift, zero.astype(np.int16) + shift
    bits = 8
    if shift and _fits_four_bits(weight, zero):  # case 3
        bits, integers, zeros = 4, integers - 120, zeros - 120
    elif not shift and _fits_four_bits(weight.astype(np.int16) - 8, zero.astype(np.int16) - 8):  # case 3
        bits = 4
    name = matmul.name
    inputs: list[ir.Value | None] = [
        x,
        initializer(graph, f"{name}_weight", _packed(_blocks(integers, block, fill=1 << (bits - 1)), bits)),
        initializer(graph, f"{name}_scale", np.ascontiguousarray(scale.T, dtype=np.float32)),
        initializer(graph, f"{name}_zero_point", _packed(_even(zeros.T, bits), bits)),
    ]
    _fuse(graph, matmul, w, inputs, {"K": rows, "N": columns, "bits": bits, "block_size": block})
    return True


def _fuse(
    graph: ir.Graph, matmul: ir.Node, w: ir.Node, inputs: list[ir.Value | None], attributes: dict[str, int]
) -> None:
    last, bias = bias_behind(matmul, attributes["N"])
    inputs += [None, bias] if bias is not None else []  # case 4
    attributes["accuracy_level"] = _IN_FLOAT32
    fused = ir.node("MatMulNBits", inputs, attributes, domain="com.microsoft", name=matmul.name)
    replace_chain(graph, fused, matmul, last)
    if not w.outputs[0].uses() and not w.outputs[0].is_graph_output():
        graph.remove(w, safe=True)


def block_of(width: int) -> int:
    """Return the largest block of the kernels that divides ``width``, 0 if there is none."""
    return next((block for block in (_BLOCK, 64, 32, _SMALLEST_BLOCK) if width % block == 0), 0)


def _try_share(graph: ir.Graph, matmul: ir.Node, w: ir.Node) -> bool:
    """Fuse a product of case 6."""
    transpose = producer(w.inputs[0], "Transpose")
    assert transpose is not None
    table, (scales, zeros) = transpose.inputs[0], (constant(value) for value in w.inputs[1:3])
    array = constant(table)
    if table is None or array is None or array.dtype != np.uint8 or array.ndim != 2 or scales is None or zeros is None:
        return False  # case 5
    (columns, rows), block = array.shape, block_of(array.shape[-1])
    if not block or (scales.ndim and w.attributes.get_int("axis", 1) % 2 != 1):
        return False  # case 5
    blocks = initializer(graph, f"{table.name}_blocks", array.reshape(columns, -1, block))
    shape = initializer(graph, f"{table.name}_shape", np.array(array.shape, np.int64))
    reshape = ir.node("Reshape", [blocks, shape], name=f"{table.name}/Reshape")
    whole = reshape.outputs[0]
    whole.name, whole.shape, whole.type = f"{reshape.name}_output_0", table.shape, table.type
    graph.insert_before(next(iter(graph)), reshape)
    table.replace_all_uses_with(whole)
    spread = (
        np.ascontiguousarray(np.broadcast_to(grid, (rows // block, columns)).T).astype(dtype)
        for grid, dtype in ((scales, np.float32), (zeros, np.uint8))
    )
    names = (f"{matmul.name}_scale", f"{matmul.name}_zero_point")
    grid = [initializer(graph, name, values) for name, values in zip(names, spread, strict=True)]
    inputs = [matmul.inputs[0], blocks, *grid]
    _fuse(graph, matmul, w, inputs, {"K": rows, "N": columns, "bits": 8, "block_size": block})
    return True


def _fits_four_bits(integers: np.ndarray, zeros: np.ndarray) -> bool:
    return all(bool(((array >= -8) & (array <= 7)).all()) for array in (integers, zeros))


def _blocks(integers: np.ndarray, block: int, *, fill: int) -> np.ndarray:
    """Reshape ``(in, out)`` to ``(out, blocks, block)``, with the last block padded."""
    rows, columns = integers.shape
    padded = np.pad(integers.T, ((0, 0), (0, -rows % block)), constant_values=fill)
    return padded.reshape(columns, -1, block)


def _even(zeros: np.ndarray, bits: int) -> np.ndarray:
    """Pad 4-bit zero points ``(out, blocks)`` to whole bytes."""
    return np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2))) if bits == 4 else zeros


def _packed(values: np.ndarray, bits: int) -> np.ndarray:
    """Return bytes; of 4-bit values each holds two neighbors on the last axis, the first one in the low half."""
    values = np.ascontiguousarray(values).astype(np.uint8)
    return values if bits == 8 else values[..., ::2] | (values[..., 1::2] << 4)
