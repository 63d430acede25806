"""Repair a file so that TensorRT can read it, and list the repairs.

The result does not compute exactly the same: a symmetric quantizer that replaces an affine one needs a larger range,
with steps that are up to twice as wide.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes import common

from exporters.onnx.load import load_onnx
from exporters.onnx.passes.graph import LAYOUT, constant, initializer, is_op
from exporters.onnx.walk import inline_functions, stored_tensors
from exporters.onnx.write import EXTERNAL_ABOVE
from exporters.tensorrt.graph_structure import (
    GraphStructure,
    array,
    consumers,
    dequantized,
    holds_infinity,
    largest_finite,
    quantized_type,
    title,
)
from exporters.tensorrt.lint.comparison import check_same_results
from qdq.storage import REPAIRED_BY, check_replaceable_file, write_bytes_atomic
from qdq.storage.io_errors import storage_errors

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["REPAIRS", "repair", "repair_model"]

_KIND = "repaired ONNX file"
_TINY = 2.0**-23  # also above 0 in float16
_PAIR = ("QuantizeLinear", "DequantizeLinear")


def repair(path: Path, target: Path) -> list[str]:
    """Write a repaired copy of the file ``path`` to ``target``, if it computes what the original does.

    Functions of the file are replaced by their bodies. Both files are run on the same inputs before the copy is kept.

    Returns:
        A line for each repair.

    Raises:
        CheckpointError: If ``path`` is not an ONNX file, or has functions of another opset.
        ConfigError: If ``target`` exists and is no earlier repaired copy, or is the original.
        VerificationError: If the copy computes something else. Nothing is written then.
        StorageError: If the copy cannot be written.
    """
    model = load_onnx(path)
    read = [path, *(Path(tensor.path) for tensor in stored_tensors(model) if isinstance(tensor, ir.ExternalTensor))]
    check_replaceable_file(target, _KIND, inputs=read)
    inline_functions(model, str(path))
    model.metadata_props[REPAIRED_BY] = "qdq lint --fix"
    with storage_errors(target), TemporaryDirectory(prefix=f".{target.name}.", dir=target.absolute().parent) as folder:
        reference, repaired = Path(folder) / "reference.onnx", Path(folder) / target.name
        # What these two repair computes something else by intention: what TensorRT reads, and what was meant.
        done = [*_missing_zero_points(model), *_infinite_constants(model)]
        if done:
            _tidy(model)
            _write(model, reference)
        done += repair_model(model)
        _write(model, repaired)
        if done:
            check_same_results(reference if reference.exists() else path, repaired, name=str(path))
        check_replaceable_file(target, _KIND, inputs=read)  # nobody knows what was put there meanwhile
        for file in sorted(Path(folder).glob(f"{target.name}*"), reverse=True):  # the weights before the graph
            file.replace(target.with_name(file.name))
    return done


def _write(model: ir.Model, path: Path) -> None:
    if sum(tensor.nbytes for tensor in stored_tensors(model)) > EXTERNAL_ABOVE:
        ir.save(model, path, external_data=f"{path.name}.data")
    else:
        ir.external_data.load_to_model(model)
        write_bytes_atomic(path, ir.to_proto(model).SerializeToString())


def repair_model(model: ir.Model) -> list[str]:
    """Repair a graph in place, and remove the nodes that are no longer used. Return a line for each repair."""
    done = [line for step in REPAIRS for line in step(model)]
    if done:
        _tidy(model)
    return done


def _tidy(model: ir.Model) -> None:
    for tidy in (common.CommonSubexpressionEliminationPass(), common.RemoveUnusedNodesPass()):
        tidy(model)


def _missing_zero_points(model: ir.Model) -> list[str]:
    """E4: Write the zero point that TensorRT assumes where a file has none, and no type either."""
    done = []
    for node in GraphStructure(model).of(*_PAIR):
        scale = constant(node.inputs[1])
        if scale is None or quantized_type(node) is not None or _given(node, 2) is not None:
            continue
        _set_zero_point(model, node, np.zeros(scale.shape, np.int8))
        done.append(f"{title(node)}: int8 around 0 now, it was without a zero point")
    return done


def _infinite_constants(model: ir.Model) -> list[str]:
    """W17: Write constants in float that are infinite because their scale was rounded: the least float of a mask."""
    done = []
    for node in GraphStructure(model).of("DequantizeLinear"):
        if holds_infinity(node):
            _fold(model, node)
            done.append(f"{title(node)}: its constant is finite now, it was rounded to infinity")
    return done


def _constants(model: ir.Model) -> list[str]:
    """E3 to E6: Write quantized constants in float, except for the weights of products and tables.

    1. Biases in int32, and whatever has 16 bits.
    2. Scalars, which TensorRT cannot read in int8.
    3. Constants around another number than 0. A mask is one: the least float in uint8, around 255. It would be infinite
       around 0.
    """
    done = []
    for node in GraphStructure(model).of("DequantizeLinear"):
        stored, source = constant(node.inputs[0]), node.inputs[0]
        if stored is None or source is None or dequantized(node) is None:
            continue
        zero, kind = array(_given(node, 2)), ir.DataType.from_numpy(stored.dtype)
        if kind in (ir.DataType.INT8, ir.DataType.UINT8):
            fits = kind is ir.DataType.INT8 and (zero is None or not zero.any())
            keeps = stored.ndim > 0 and (fits or _feeds_product(node.outputs[0]))
        else:
            keeps = kind not in (ir.DataType.INT32, ir.DataType.INT16, ir.DataType.UINT16)
        if not keeps:
            _fold(model, node)
            what = "bias" if kind is ir.DataType.INT32 else "constant"
            done.append(f"{title(node)}: the {kind.name.lower()} {what} {source.name} is float now")
    return done


def _fold(model: ir.Model, node: ir.Node) -> None:
    """Replace a DequantizeLinear and its constant by what they mean."""
    value = dequantized(node)
    assert value is not None
    assert node.inputs[0] is not None
    _replace_value(node, initializer(model.graph, f"{node.inputs[0].name}_float", value))


def _feeds_product(value: ir.Value) -> bool:
    """Return whether a product or a look-up reads ``value``, maybe through a change of layout."""
    for node in consumers(value):
        if is_op(node, "MatMul", "Gemm", "Conv", "Gather"):
            return True
        if is_op(node, *LAYOUT) and _feeds_product(node.outputs[0]):
            return True
    return False


def _axis(node: ir.Node) -> int:
    return node.attributes.get_int("axis", 1)


def _given(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if len(node.inputs) > index else None


def _replace_value(node: ir.Node, value: ir.Value) -> None:
    """Let everybody read ``value`` instead of what ``node`` gives, and remove the node. Outputs keep their names."""
    old = node.outputs[0]
    assert node.graph is not None
    if old.is_graph_output():
        same = ir.node("Identity", [value], name=f"{title(node)}/Identity")
        made = same.outputs[0]
        made.name, made.shape, made.type = old.name, old.shape, old.type
        node.graph.insert_before(node, same)
        value = made
    old.replace_all_uses_with(value, replace_graph_outputs=True)
    node.graph.remove(node, safe=True)


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
    """E1: Replace scales of 0, which dead channels have, by tiny ones, and negative scales by their magnitude.

    The integers of a constant change their sign with the scale, and stay 0 where the scale was 0.
    """
    done = []
    for node in GraphStructure(model).of(*_PAIR):
        scale = constant(node.inputs[1])
        if scale is None or not np.isfinite(scale.astype(np.float64)).all() or (scale > 0).all():
            continue
        fixed = np.where(scale == 0, np.asarray(_TINY, scale.dtype), np.abs(scale)).astype(scale.dtype)
        stored = constant(node.inputs[0])
        zero = array(_given(node, 2))
        if stored is not None and is_op(node, "DequantizeLinear") and stored.dtype == np.int8:
            if zero is not None and zero.any():
                continue  # another operator reads these integers, so they are not around 0
            shape = [1] * stored.ndim
            if scale.size > 1:
                shape[_axis(node)] = -1
            signs = np.sign(scale.astype(np.float32)).reshape(shape if scale.size > 1 else ())
            _replace(model, node, 0, np.clip(stored * signs, -127, 127).astype(np.int8), "positive")
        _replace(model, node, 1, fixed, "positive")
        done.append(f"{title(node)}: {np.count_nonzero(scale <= 0)} of {scale.size} scales are above 0 now")
    return done


def _zero_points(model: ir.Model) -> list[str]:
    """E3, E4: Convert uint8 and zero points other than 0 to symmetric int8."""
    done = []
    for node in GraphStructure(model).of(*_PAIR):
        scale = constant(node.inputs[1])
        kind = quantized_type(node)
        if scale is None or kind not in (ir.DataType.UINT8, ir.DataType.INT8) or not _is_pair(node):
            continue
        given = _given(node, 2) is not None
        zero = array(node.inputs[2]) if given else np.zeros(scale.shape, np.int8)
        if zero is None or (kind is ir.DataType.INT8 and (not given or not zero.any())):
            continue
        low, high = (0, 255) if kind is ir.DataType.UINT8 else (-128, 127)
        wide = zero.astype(np.float64)
        # The larger side of the old range decides the new one. A zero point in the middle needs no larger range.
        steps = np.where(wide == (low + high + 1) // 2, 127.0, np.maximum(wide - low, high - wide))
        # 128 steps must be finite: the range of a masked tensor may be all that the type holds.
        largest = largest_finite(scale.dtype) / 128
        grown = np.minimum(scale.astype(np.float64) * steps / 127, largest).astype(scale.dtype)
        stored = constant(node.inputs[0])
        if stored is not None and is_op(node, "DequantizeLinear"):
            shape = [1] * stored.ndim
            if scale.size > 1:
                shape[_axis(node)] = -1
            numbers = (stored.astype(np.float64) - wide.reshape(shape)) * 127 / steps.reshape(shape)
            integers = np.clip(np.rint(numbers), -128, 127).astype(np.int8)
            _replace(model, node, 0, integers, "int8")
        _replace(model, node, 1, grown, "symmetric")
        _set_zero_point(model, node, np.zeros(scale.shape, np.int8))
        was = "without a zero point" if not given else f"{kind.name.lower()} around {wide.flat[0]:g}"
        done.append(f"{title(node)}: int8 around 0 now, it was {was}")
    return done


def _is_pair(node: ir.Node) -> bool:
    """Return whether nothing but DequantizeLinear reads the integers, which another operator takes as they are."""
    value = node.outputs[0] if is_op(node, "QuantizeLinear") else node.inputs[0]
    if value is None or not (constant(value) is not None or is_op(value.producer(), "QuantizeLinear")):
        return False
    return not value.is_graph_output() and all(is_op(reader, "DequantizeLinear") for reader in consumers(value))


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
            assert node.graph is not None
            node.graph.remove(node, safe=True)
        done.append(f"{title(first)}: {len(others)} more quantizers of the same tensor are one with it now")
    return done


REPAIRS: tuple[Callable[[ir.Model], list[str]], ...] = (
    *(_missing_zero_points, _infinite_constants, _constants),
    *(_scale_types, _zero_points, _scales, _duplicates),
)


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
