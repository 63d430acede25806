"""Checks of each QuantizeLinear and DequantizeLinear: E1 to E7, W1, W4, W12, W14, W16, W18, W19."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from exporters.onnx.passes.graph import constant, is_op, producer
from exporters.onnx.walk import stored_values
from exporters.tensorrt.graph_structure import GraphStructure, array, consumers, quantized_type, source, title
from exporters.tensorrt.lint.rules import RULES, Finding, Severity
from exporters.tensorrt.lint.types import FLOATS, types_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exporters.tensorrt.lint.settings import Settings

__all__ = ["QUANTIZER_CHECKS", "finding"]

_QUANTIZED = (
    ir.DataType.INT8,
    ir.DataType.FLOAT8E4M3FN,
    ir.DataType.INT4,
    ir.DataType.FLOAT4E2M1,
)
_SINCE = {
    ir.DataType.FLOAT8E4M3FN: (9, 0),
    ir.DataType.INT4: (10, 0),
    ir.DataType.FLOAT4E2M1: (10, 8),
}
_PAIR = ("QuantizeLinear", "DequantizeLinear")
_MASK = 1e30  # activations are smaller, masks are about as large as the type allows
_LEAST_HALF = 2.0**-24  # the smallest float16 above 0


def finding(rule: str, node: ir.Node | str, problem: str, severity: Severity | None = None) -> Finding:
    """Make a finding.

    Args:
        rule: Id of the rule.
        node: The node, or a name.
        problem: What is wrong.
        severity: Severity, that of the rule if None.
    """
    name = node if isinstance(node, str) else title(node)
    return Finding(rule, name, problem, severity or RULES[rule].severity)


def _scale(node: ir.Node) -> ir.Value | None:
    return node.inputs[1] if len(node.inputs) > 1 else None


def _zero_point(node: ir.Node) -> ir.Value | None:
    return node.inputs[2] if len(node.inputs) > 2 else None


def scales(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:
    """E1, E2, W12, W16: scales are valid constants."""
    half = structure.element_type is not ir.DataType.FLOAT
    for node in structure.of(*_PAIR):
        value = _scale(node)
        scale = array(value)
        if value is None or scale is None:
            what = "has no scale" if value is None else "computes its scale while it runs"
            severity: Severity | None = "error" if value is None or settings.version < (10, 13) else None
            yield finding("E1" if value is None else "W12", node, what, severity)
            continue
        kind = ir.DataType.from_numpy(scale.dtype)
        if kind not in FLOATS:
            yield finding("E2", node, f"its scale is {kind.name.lower()}")
        elif kind is not ir.DataType.FLOAT and structure.opset < 19:
            yield finding("E2", node, f"its scale is {kind.name.lower()} in opset {structure.opset}")
        numbers = scale.astype(np.float64).reshape(-1)
        bad = numbers[~(np.isfinite(numbers) & (numbers > 0))]
        if not numbers.size:
            yield finding("E1", node, "its scale is empty")
        elif bad.size:
            yield finding(
                "E1", node, f"{bad.size} of {numbers.size} scales are not above 0 and finite, {bad[0]:g} first"
            )
        elif half and (numbers.min() < _LEAST_HALF or numbers.max() > float(np.finfo(np.float16).max)):
            yield finding("W16", node, f"its scales go from {numbers.min():.1e} to {numbers.max():.1e}")


def zero_points(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:
    """E3 and E4: zero points are 0, and quantized types are known to TensorRT."""
    for node in structure.of(*_PAIR):
        value = _zero_point(node)
        zero = array(value)
        scale = array(_scale(node))
        kind = quantized_type(node)
        if value is not None and zero is None:
            yield finding("E3", node, "its zero point is computed while it runs")
        elif zero is not None:
            numbers = zero.astype(np.float32).reshape(-1)
            if numbers.any():
                yield finding("E3", node, f"{np.count_nonzero(numbers)} of {numbers.size} zero points are not 0")
            if scale is not None and scale.size != zero.size:
                yield finding("E3", node, f"{zero.size} zero points for {scale.size} scales")
        if kind is ir.DataType.INT32 and is_op(node, "DequantizeLinear"):
            continue  # E5
        if kind is None and is_op(node, "QuantizeLinear"):
            problem = "no zero point says the type: uint8 in ONNX, int8 in TensorRT"
            yield finding("E4", node, problem, "warning")
        elif kind is ir.DataType.UINT8 and constant(node.inputs[0]) is None:
            problem = "uint8 is read as int8: values above 127 steps saturate, in ONNX Runtime they do not"
            yield finding("E4", node, problem, "warning")
        elif kind is not None and kind not in _QUANTIZED:
            yield finding("E4", node, f"{kind.name.lower()} is no type that TensorRT quantizes to")
        elif kind is not None and settings.version < _SINCE.get(kind, (0, 0)):
            least, given = (".".join(map(str, version)) for version in (_SINCE[kind], settings.version))
            problem = f"{kind.name.lower()} needs TensorRT {least} or newer, this is {given}"
            yield finding("E4", node, problem, "warning")


def operands(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:  # noqa: ARG001
    """E5 and E6: quantizers read floats, only DequantizeLinear reads integers, and these are no constant scalars."""
    types = types_of(structure.nodes)
    for node in structure.of(*_PAIR):
        value = node.inputs[0]
        kind = None if value is None else types.get(value)
        if value is None or kind is None:
            continue
        if is_op(node, "DequantizeLinear") and kind is not ir.DataType.INT32 and _is_scalar(value):
            yield finding("E6", node, f"the {kind.name.lower()} constant {value.name} is a scalar")
        if is_op(node, "QuantizeLinear") and kind not in FLOATS:
            yield finding("E6", node, f"it reads {kind.name.lower()}")
        elif is_op(node, "DequantizeLinear") and kind is ir.DataType.INT32:
            yield finding("E5", node, f"it reads the int32 tensor {value.name}")
        elif is_op(node, "DequantizeLinear") and kind in FLOATS:
            yield finding("E6", node, f"it reads {kind.name.lower()}, which is not quantized")
    for value in stored_values(structure.model):
        if value.dtype not in (*_QUANTIZED, ir.DataType.UINT8):
            continue
        for node in consumers(value):
            if not is_op(node, *_PAIR) and not _only_to_zero_point(node):
                yield finding("E6", node, f"it reads the {value.dtype.name.lower()} constant {value.name}")


def _is_scalar(value: ir.Value) -> bool:
    return constant(value) is not None and value.shape is not None and len(value.shape) == 0


def _only_to_zero_point(node: ir.Node) -> bool:
    readers = consumers(node.outputs[0])
    return is_op(node, "Cast") and bool(readers) and all(node.outputs[0] is _zero_point(reader) for reader in readers)


def axes(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:  # noqa: ARG001
    """E7 and W4: the number of scales fits the axis, and activations have one."""
    for node in structure.of(*_PAIR):
        scale, data = array(_scale(node)), node.inputs[0]
        if scale is None or data is None or scale.size == 1:
            continue
        stored = constant(data) is not None or data.const_value is not None
        if is_op(node, "QuantizeLinear") and not stored and constant(source(data)) is None:
            yield finding("W4", node, f"{scale.size} scales for a tensor that is computed")
        shape = data.shape
        if shape is None:
            continue
        block = node.attributes.get_int("block_size", 0)
        axis = node.attributes.get_int("axis", 1)
        if scale.ndim > 1 or block:
            problem = _block_problem(scale.shape, shape, block, axis)
            if problem:
                yield finding("E7", node, problem)
        elif not -len(shape) <= axis < len(shape):
            yield finding("E7", node, f"the axis is {axis}, the tensor has {len(shape)}")
        elif isinstance(shape[axis], int) and shape[axis] != scale.size:
            yield finding("E7", node, f"{scale.size} scales for {shape[axis]} on axis {axis}")


def _block_problem(scale: tuple[int, ...], data: ir.Shape, block: int, axis: int) -> str | None:
    if not block:
        return f"scales of rank {len(scale)} without a block size"
    if len(scale) != len(data):
        return f"scales of rank {len(scale)} for a tensor of rank {len(data)}"
    sizes = list(zip(scale, data, strict=True))
    other = [index for index, (a, b) in enumerate(sizes) if index != axis % len(data) and isinstance(b, int) and a != b]
    size = data[axis]
    if other:
        return f"scales {scale} are for blocks of more than one axis of {tuple(data)}"
    if isinstance(size, int) and scale[axis] * block != size:
        return f"{scale[axis]} blocks of {block} do not make {size}"
    return None


def pairs(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:  # noqa: ARG001
    """W1: QuantizeLinear and DequantizeLinear are pairs."""
    for node in structure.of("QuantizeLinear"):
        readers = consumers(node.outputs[0])
        if not readers and not node.outputs[0].is_graph_output():
            yield finding("W1", node, "nobody reads its integers")
        for reader in readers:
            if not is_op(reader, "DequantizeLinear"):
                yield finding("W1", node, f"{title(reader)} ({reader.op_type}) reads its integers")
            elif not _same_grid(node, reader):
                yield finding("W1", node, f"{title(reader)} has another scale, zero point or axis")


def _same_grid(one: ir.Node, other: ir.Node) -> bool:
    for value, theirs in ((_scale(one), _scale(other)), (_zero_point(one), _zero_point(other))):
        a, b = array(value), array(theirs)
        if value is not theirs and a is not None and b is not None and not _equal(a, b):
            return False
    scale = array(_scale(one))
    several = scale is not None and scale.size > 1
    return not several or one.attributes.get_int("axis", 1) == other.attributes.get_int("axis", 1)


def _equal(a: np.ndarray, b: np.ndarray) -> bool:
    return a.size == b.size and bool((a.reshape(-1).astype(np.float32) == b.reshape(-1).astype(np.float32)).all())


def casts(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:  # noqa: ARG001
    """W14: in a half-precision graph no quantizer needs a Cast."""
    if structure.element_type is ir.DataType.FLOAT:
        return
    types = types_of(structure.nodes)
    for node in structure.of(*_PAIR):
        scale = _scale(node)
        kind = None if scale is None else types.get(scale)
        if kind is ir.DataType.FLOAT:
            yield finding(
                "W14", node, f"its scale is float, the graph computes in {structure.element_type.name.lower()}"
            )
        cast = producer(node.inputs[0], "Cast")
        if is_op(node, "QuantizeLinear") and cast is not None and _between_floats(cast, types):
            yield finding("W14", node, "a Cast stands in front of it")
        for reader in consumers(node.outputs[0], "Cast") if is_op(node, "DequantizeLinear") else []:
            if _between_floats(reader, types):
                yield finding("W14", node, "a Cast stands behind it")


def _between_floats(cast: ir.Node, types: dict[ir.Value, ir.DataType]) -> bool:
    value = cast.inputs[0]
    return value is not None and types.get(value) in FLOATS and types.get(cast.outputs[0]) in FLOATS


def plausible(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:  # noqa: ARG001
    """W18: scales look calibrated."""
    by_scale: dict[float, list[ir.Node]] = defaultdict(list)
    for node in structure.of("QuantizeLinear"):
        scale, data = array(_scale(node)), node.inputs[0]
        if scale is None or scale.size != 1 or data is None or data.const_value is not None:
            continue
        number = float(scale.reshape(-1)[0])
        behind_softmax = producer(source(data), "Softmax") is not None
        if number == 1.0:
            yield finding("W18", node, "its scale is exactly 1")
        elif behind_softmax and number > 1.01 / 127:
            yield finding("W18", node, f"its scale is {number:.2g}: softmax needs no more than {1 / 127:.2g}")
        if number * 127 > _MASK:
            yield finding("W18", node, f"its scale is {number:.2g}: a mask is in its range, all other values become 0")
        if not behind_softmax:
            by_scale[number].append(node)
    tensors = sum(len(nodes) for nodes in by_scale.values())
    for number, nodes in by_scale.items():
        if len(nodes) >= 4 and 2 * len(nodes) > tensors and number != 1.0:
            yield finding("W18", nodes[0], f"{len(nodes)} of {tensors} quantizers have the scale {number:.3g}")


def once(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:  # noqa: ARG001
    """W19: a tensor is quantized once."""
    readers: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    for node in structure.of("QuantizeLinear"):
        if node.inputs[0] is not None:
            readers[node.inputs[0]].append(node)
    for nodes in readers.values():
        others = [node for node in nodes[1:] if not _same_grid(nodes[0], node)]
        for node in others:
            yield finding("W19", node, f"{title(nodes[0])} quantizes the same tensor with another scale")


QUANTIZER_CHECKS = (scales, zero_points, operands, axes, pairs, casts, plausible, once)
