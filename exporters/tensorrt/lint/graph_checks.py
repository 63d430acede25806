"""Checks of the graph as a whole: E8 to E12, W17, W20, I1, I2."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from exporters.onnx.passes.graph import constant, is_op
from exporters.onnx.walk import stored_values
from exporters.tensorrt.graph_structure import GraphStructure, consumers, holds_infinity, title
from exporters.tensorrt.lint.operators import opsets_of, supported_operators
from exporters.tensorrt.lint.quantizer_checks import finding
from exporters.tensorrt.lint.types import clashes, types_of
from exporters.tensorrt.profiles import check_profiles

if TYPE_CHECKING:
    from collections.abc import Iterator

    from exporters.tensorrt.lint.rules import Finding
    from exporters.tensorrt.lint.settings import Settings

__all__ = ["GRAPH_CHECKS"]

_SMALL = 1 << 16  # bytes; larger constants are weights, which are not read


def operators(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:
    """E8: every operator is known to TensorRT."""
    known = supported_operators(settings.version)
    version = ".".join(map(str, settings.version))
    own = structure.model.functions
    for node in structure.nodes:
        if node.op_identifier() in own or node.domain.startswith("trt"):
            continue
        if node.domain not in ("", "ai.onnx"):
            yield finding("E8", node, f"{node.domain}.{node.op_type} is no operator of ONNX")
        elif node.op_type not in known:
            yield finding("E8", node, f"TensorRT {version} has no {node.op_type}")


def typed(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:  # noqa: ARG001
    """E9: operands of one operator have one type."""
    for node, problem in clashes(structure.nodes, types_of(structure.nodes)):
        yield finding("E9", node, problem)


def modes(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:  # noqa: ARG001
    """E10: no operator has attributes or outputs that TensorRT cannot read."""
    for node in structure.of("LayerNormalization", "BatchNormalization"):
        extra = [value for value in node.outputs[1:] if consumers(value) or value.is_graph_output()]
        if extra:
            yield finding("E10", node, f"its output {extra[0].name} is used")
        if is_op(node, "BatchNormalization") and node.attributes.get_int("training_mode", 0) == 1:
            yield finding("E10", node, "it is in training mode")
    for node in structure.of("Dropout"):
        training = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if training is not None and training.any():
            yield finding("E10", node, "it is in training mode")
    types = types_of(structure.nodes)
    for node in structure.of("Attention"):
        value = node.inputs[0]
        if value is not None and _rank(value) == 4 and types.get(value) is ir.DataType.FLOAT:
            yield finding("E10", node, "it has inputs of rank 4 in float32")
    for node in structure.of("ArgMax", "ArgMin"):
        if _rank(node.inputs[0]) == 1:
            yield finding("E10", node, "it reads a tensor of one axis")


def _rank(value: ir.Value | None) -> int | None:
    return None if value is None or value.shape is None else len(value.shape)


def opset(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:
    """E11: the opset is one that this version reads."""
    version = ".".join(map(str, settings.version))
    read = opsets_of(settings.version)
    if structure.opset not in read:
        yield finding(
            "E11", "the file", f"opset {structure.opset}: TensorRT {version} reads {read.start} to {read.stop - 1}"
        )
    if settings.version < (9, 0):
        for node in structure.of("QuantizeLinear", "DequantizeLinear"):
            if len(node.inputs) < 3 or node.inputs[2] is None:
                yield finding("E11", node, f"it has no zero point, which TensorRT {version} needs")


def profiles(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:  # noqa: ARG001
    """E12: the optimization profiles are valid."""
    source = settings.source
    for problem in check_profiles(settings.profiles, source.inputs, longest=source.longest):
        yield finding("E12", "the profiles", problem)


def constants(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:  # noqa: ARG001
    """W17: constants have types and values that TensorRT can store."""
    for value in stored_values(structure.model):
        tensor = value.const_value
        if tensor is None:
            continue
        if tensor.dtype is ir.DataType.DOUBLE:
            yield finding("W17", str(value.name), "it is double, and becomes float32")
        small = tensor.nbytes <= _SMALL and tensor.dtype.is_floating_point() and tensor.dtype.itemsize >= 2
        if small and not _is_scale(value) and not np.isfinite(tensor.numpy().astype(np.float64)).all():
            yield finding("W17", str(value.name), f"it is {tensor.dtype.name.lower()} and holds infinity or NaN")

    for node in structure.of("DequantizeLinear"):
        stored = node.inputs[0].const_value if node.inputs[0] is not None else None
        if stored is not None and stored.nbytes <= _SMALL and holds_infinity(node):
            yield finding("W17", node, "its constant dequantizes to infinity, and infinity times 0 is NaN")


def _is_scale(value: ir.Value) -> bool:
    readers = consumers(value)
    return bool(readers) and all(is_op(node, "QuantizeLinear", "DequantizeLinear") for node in readers)


def refit(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:  # noqa: ARG001
    """W20: an int8 engine is not refitted."""
    if settings.refit and settings.source.is_quantized:
        yield finding("W20", "the file", "it is quantized, and the engine is to be refitted")


def order(structure: GraphStructure, settings: Settings) -> Iterator[Finding]:
    """I1 and I2: the file is below 2 GiB, constants are used, and names are unique."""
    size = settings.source.path.stat().st_size
    if size >= 1 << 31:
        yield finding("I1", "the file", f"it has {size / 1e9:.1f} GB in one piece")
    unused = [
        value
        for value in stored_values(structure.model)
        if not consumers(value) and not value.is_graph_output() and not value.is_graph_input()
    ]
    if unused:
        yield finding("I2", str(unused[0].name), f"{len(unused)} constants are not used")
    twice = [name for name, count in Counter(node.name for node in structure.nodes).items() if name and count > 1]
    if twice:
        yield finding("I2", str(twice[0]), f"{len(twice)} names of nodes are not unique")
    nameless = [node for node in structure.nodes if not node.name]
    if nameless:
        yield finding("I2", title(nameless[0]), f"{len(nameless)} nodes have no name")


GRAPH_CHECKS = (operators, typed, modes, opset, profiles, constants, refit, order)
