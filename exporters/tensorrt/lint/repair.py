"""Repair a file so that TensorRT can read it, and list the repairs.

The result does not compute exactly the same: a symmetric quantizer that replaces an affine one needs a larger range,
with steps that are up to twice as wide.
"""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from exporters.onnx.load import load_onnx
from exporters.onnx.passes.graph import constant, initializer, is_op
from exporters.onnx.write import EXTERNAL_ABOVE
from exporters.tensorrt.graph_structure import GraphStructure, array, consumers, quantized_type, title
from qdq.errors import ConfigError
from qdq.storage import write_bytes_atomic

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["REPAIRS", "repair", "repair_model"]

_TINY = 2.0**-23  # also above 0 in float16
_PAIR = ("QuantizeLinear", "DequantizeLinear")


def repair(path: Path, target: Path) -> list[str]:
    """Write a repaired copy of the file ``path`` to ``target``.

    Returns:
        A line for each repair.

    Raises:
        CheckpointError: If ``path`` is not an ONNX file.
        ConfigError: If the copy would replace the original.
    """
    if target.resolve() == path.resolve() or target.is_dir():
        raise ConfigError(f"{target}: name another file for the repaired copy, the original is kept")
    model = load_onnx(path)
    done = repair_model(model)
    tensors = [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]
    if sum(tensor.nbytes for tensor in tensors) > EXTERNAL_ABOVE:
        ir.save(model, target, external_data=f"{target.name}.data")
    else:
        ir.external_data.load_to_model(model)
        write_bytes_atomic(target, ir.to_proto(model).SerializeToString())
    return done


def repair_model(model: ir.Model) -> list[str]:
    """Repair a graph in place, and remove the nodes that are no longer used. Return a line for each repair."""
    done = [line for step in REPAIRS for line in step(model)]
    if done:
        for tidy in (common.CommonSubexpressionEliminationPass(), common.RemoveUnusedNodesPass()):
            tidy(model)
    return done


def _biases(model: ir.Model) -> list[str]:
    """E5: Replace an int32 constant and its DequantizeLinear by a float constant."""
    done = []
    for node in GraphStructure(model).of("DequantizeLinear"):
        stored, scale = constant(node.inputs[0]), array(node.inputs[1])
        if stored is None or scale is None or stored.dtype != np.int32:
            continue
        zero = array(node.inputs[2]) if len(node.inputs) > 2 else None
        value = (stored - (0 if zero is None else zero.astype(np.int32))) * scale.astype(np.float32)
        source = node.inputs[0]
        assert source is not None
        folded = initializer(model.graph, f"{source.name}_float", value.astype(scale.dtype))
        node.outputs[0].replace_all_uses_with(folded)
        model.graph.remove(node, safe=True)
        done.append(f"{title(node)}: the int32 bias {source.name} is float now")
    return done


def _scale_types(model: ir.Model) -> list[str]:
    """E2: Convert scales of a type that TensorRT does not take to the type of the graph."""
    structure = GraphStructure(model)
    wanted = structure.element_type if structure.opset >= 19 else ir.DataType.FLOAT
    done = []
    for node in structure.of(*_PAIR):
        scale = constant(node.inputs[1])
        kind = None if scale is None else ir.DataType.from_numpy(scale.dtype)
        half = kind in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
        if scale is None or kind is ir.DataType.FLOAT or (half and structure.opset >= 19):
            continue
        _replace(model, node, 1, scale.astype(wanted.numpy()), "float")
        done.append(f"{title(node)}: its scale is {wanted.name.lower()} now")
    return done


def _scales(model: ir.Model) -> list[str]:
    """E1: Replace scales of 0, which dead channels have, by tiny ones, and negative scales by their magnitude."""
    done = []
    for node in GraphStructure(model).of(*_PAIR):
        scale = constant(node.inputs[1])
        if scale is None or not np.isfinite(scale.astype(np.float64)).all() or (scale > 0).all():
            continue
        fixed = np.where(scale == 0, np.asarray(_TINY, scale.dtype), np.abs(scale)).astype(scale.dtype)
        _replace(model, node, 1, fixed, "positive")
        done.append(f"{title(node)}: {np.count_nonzero(scale <= 0)} of {scale.size} scales are above 0 now")
    return done


def _zero_points(model: ir.Model) -> list[str]:
    """E3, E4: Convert uint8 and zero points other than 0 to symmetric int8, and write a missing zero point."""
    done = []
    for node in GraphStructure(model).of(*_PAIR):
        scale = constant(node.inputs[1])
        kind = quantized_type(node)
        if scale is None or kind not in (ir.DataType.UINT8, ir.DataType.INT8, None):
            continue
        given = len(node.inputs) > 2 and node.inputs[2] is not None
        zero = array(node.inputs[2]) if given else np.zeros(scale.shape, np.int8)
        if zero is None or (given and kind is ir.DataType.INT8 and not zero.any()):
            continue
        if kind is ir.DataType.INT8 and not given and is_op(node, "DequantizeLinear"):
            continue  # its input says the type
        low, high = (0, 255) if kind is ir.DataType.UINT8 else (-128, 127)
        wide = zero.astype(np.float64)
        # The larger side of the old range decides the new one. A zero point in the middle needs no larger range.
        steps = np.where(wide == (low + high + 1) // 2, 127.0, np.maximum(wide - low, high - wide))
        grown = (scale.astype(np.float64) * steps / 127).astype(scale.dtype)
        stored = constant(node.inputs[0])
        if stored is not None and is_op(node, "DequantizeLinear"):
            axis = node.attributes.get_int("axis", 1)
            shape = [1] * stored.ndim
            if scale.size > 1:
                shape[axis] = -1
            numbers = (stored.astype(np.float64) - wide.reshape(shape)) * 127 / steps.reshape(shape)
            integers = np.clip(np.rint(numbers), -128, 127).astype(np.int8)
            _replace(model, node, 0, integers, "int8")
        if kind is None and not given:
            grown = scale  # without a zero point TensorRT reads int8 already
        _replace(model, node, 1, grown, "symmetric")
        _set_zero_point(model, node, np.zeros(scale.shape, np.int8))
        was = "without a zero point" if not given else f"{kind.name.lower() if kind else ''} around {wide.flat[0]:g}"
        done.append(f"{title(node)}: int8 around 0 now, it was {was}")
    return done


def _duplicates(model: ir.Model) -> list[str]:
    """W5, W19: Merge the quantizers of one tensor into one with the largest of their scales."""
    readers: dict[ir.Value, list[ir.Node]] = defaultdict(list)
    for node in GraphStructure(model).of("QuantizeLinear"):
        scale = constant(node.inputs[1])
        if node.inputs[0] is not None and scale is not None and scale.size == 1:
            readers[node.inputs[0]].append(node)
    done = []
    for nodes in readers.values():
        # The largest scale covers the ranges of all; a smaller one would clip values.
        first, *others = nodes
        others = [node for node in others if quantized_type(node) is quantized_type(first)]
        if not others:
            continue
        scales = [constant(node.inputs[1]) for node in (first, *others)]
        largest = max((scale for scale in scales if scale is not None), key=lambda scale: float(scale.reshape(-1)[0]))
        pairs = [pair for node in (first, *others) for pair in consumers(node.outputs[0], "DequantizeLinear")]
        for node in (first, *pairs):
            _replace(model, node, 1, largest, "shared")
        for node in others:
            node.outputs[0].replace_all_uses_with(first.outputs[0])
            model.graph.remove(node, safe=True)
        done.append(f"{title(first)}: {len(others)} more quantizers of the same tensor are one with it now")
    return done


REPAIRS: tuple[Callable[[ir.Model], list[str]], ...] = (_biases, _scale_types, _scales, _zero_points, _duplicates)


def _replace(model: ir.Model, node: ir.Node, index: int, array: np.ndarray, word: str) -> None:
    value = node.inputs[index]
    assert value is not None
    node.replace_input_with(index, initializer(model.graph, f"{value.name}_{word}", array))


def _set_zero_point(model: ir.Model, node: ir.Node, zero: np.ndarray) -> None:
    scale = node.inputs[1]
    assert scale is not None
    value = initializer(model.graph, f"{scale.name}_zero", zero)
    if len(node.inputs) > 2:
        node.replace_input_with(2, value)
    else:
        node.resize_inputs(3)
        node.replace_input_with(2, value)
