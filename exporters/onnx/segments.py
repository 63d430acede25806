"""Cut a quantized graph at its quantizers, so that every segment can run on its own.

A value that rounds to the other neighbor grows through the layers, so two correct implementations differ end to end.
Between two quantizers they do not: given the same integers, both return the same integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from exporters.onnx.load import load_onnx
from exporters.onnx.passes.graph import constant, is_op, producer
from qdq.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["Cut", "cut_at_quantizers"]


@dataclass(frozen=True)
class Cut:
    """Describe a cut of the graph at one quantizer.

    Args:
        slot: Dotted name of the quantizer, ``encoder.layers.0.attention.query.input_quantizer``.
        output: Graph output with the integers that the segment before the cut computes.
        input: Graph input for the integers that the segment behind the cut reads.
        zero_point: Zero point of the graph, which may be shifted (uint8 for int8); None if the graph computes it.
        dtype: Type of the integers. It is float32 for float8, which numpy lacks; the graph casts at the cut.
        perm: Permutation of the Transpose that the graph puts before the quantizer; None if there is none.
        computed: Dynamic parameters of the quantizer, ``scale`` and maybe ``zero_point``: the name, the graph output
            with what the segment before computes, and the graph input that the segment behind reads.
    """

    slot: str
    output: str
    input: str
    zero_point: int | None
    dtype: np.dtype[np.generic]
    perm: tuple[int, ...] | None = None
    computed: tuple[tuple[str, str, str], ...] = ()


def cut_at_quantizers(path: Path, into: Path) -> tuple[Cut, ...]:
    """Cut a model behind every quantizer of a computed tensor, or behind the Clip that follows it.

    The result has the inputs and outputs of the model and those of its cuts. Its weights are in a file of their own,
    which runtimes map into memory.

    Case 1: QuantizeLinear with constant parameters.
    Case 2: QuantizeLinear with a scale that the graph computes: the scale is cut as well.
    Case 3: DynamicQuantizeLinear: scale and zero point are cut as well.
    Case 4: Float8 enters and leaves the graph as float32.

    Args:
        path: The model.
        into: The file to write.

    Returns:
        The cuts, in graph order.

    Raises:
        CheckpointError: If ``path`` is not an ONNX file, or has quantizers that qdq did not write.
        OSError: If ``into`` cannot be written.
    """
    model = load_onnx(path)
    graph = model.graph
    cuts = []
    for node in list(graph):
        if not is_op(node, "QuantizeLinear", "DynamicQuantizeLinear") or constant(node.inputs[0]) is not None:
            continue
        zero_point, computed = _grid(graph, node, path)
        # Fewer bits and narrow ranges have a Clip behind the QuantizeLinear; the integers are complete only after it.
        last = next((use.node for use in node.outputs[0].uses() if is_op(use.node, "Clip")), node)
        dtype = np.dtype(np.uint8) if zero_point is None else zero_point.dtype
        kind = ir.DataType.from_numpy(dtype)
        q, fed = _cut(graph, last.outputs[0], kind)
        if kind is ir.DataType.FLOAT8E4M3FN:  # case 4
            q, fed, dtype = *_as_floats(graph, last.outputs[0], fed), np.dtype(np.float32)
        slot = str(node.name).rpartition("/")[0]
        moved = producer(node.inputs[0], "Transpose")
        perm = (
            tuple(moved.attributes.get_ints("perm"))
            if moved is not None and moved.name == f"{slot}/Transpose"
            else None
        )
        zero = None if zero_point is None else int(zero_point)
        cuts.append(Cut(slot, q, fed, zero, dtype, perm, computed))
    ir.save(model, into, external_data=f"{into.name}.data")
    return tuple(cuts)


def _grid(graph: ir.Graph, node: ir.Node, path: Path) -> tuple[np.ndarray | None, tuple[tuple[str, str, str], ...]]:
    """Return the zero point of a quantizer, None if it is computed, and the cuts of its computed parameters."""
    if is_op(node, "DynamicQuantizeLinear"):  # case 3
        scale, zero = node.outputs[1], node.outputs[2]
        parts = (
            ("scale", *_cut(graph, scale, ir.DataType.FLOAT)),
            ("zero_point", *_cut(graph, zero, ir.DataType.UINT8)),
        )
        return None, parts
    zero_point = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    if zero_point is None or zero_point.ndim:
        raise CheckpointError(f"{path}: {node.name} has no constant zero point, so qdq export did not write this file")
    if constant(node.inputs[1]) is not None:  # case 1
        return zero_point, ()
    scale_in = node.inputs[1]
    assert scale_in is not None
    return zero_point, (("scale", *_cut(graph, scale_in, ir.DataType.FLOAT, keep=node)),)  # case 2


def _cut(graph: ir.Graph, value: ir.Value, dtype: ir.DataType, *, keep: ir.Node | None = None) -> tuple[str, str]:
    """Make ``value`` a graph output and let its readers, except ``keep``, read a new graph input. Return both names."""
    fed = ir.Value(name=f"{value.name}__fed", shape=value.shape, type=ir.TensorType(dtype))
    for user, index in [(use.node, use.idx) for use in value.uses()]:
        if user is not keep:
            user.replace_input_with(index, fed)
    value.type = fed.type
    graph.inputs.append(fed)
    graph.outputs.append(value)
    return str(value.name), str(fed.name)


def _as_floats(graph: ir.Graph, value: ir.Value, fed: str) -> tuple[str, str]:
    """Cast at a cut of float8, so that it is float32 outside. Return the names of output and input."""
    entry = next(found for found in graph.inputs if found.name == fed)
    wide = ir.Value(name=f"{fed}_wide", shape=entry.shape, type=ir.TensorType(ir.DataType.FLOAT))
    narrow = ir.node("Cast", [wide], {"to": int(ir.DataType.FLOAT8E4M3FN)}, name=f"{fed}/Cast")
    narrow.outputs[0].name = f"{fed}_narrow"
    narrow.outputs[0].type = entry.type
    entry.replace_all_uses_with(narrow.outputs[0])
    graph.inputs[graph.inputs.index(entry)] = wide
    graph.insert_before(graph[0], narrow)
    out = ir.node("Cast", [value], {"to": int(ir.DataType.FLOAT)}, name=f"{value.name}/Cast")
    out.outputs[0].name = f"{value.name}_wide"
    out.outputs[0].type, out.outputs[0].shape = wide.type, value.shape
    graph.append(out)
    graph.outputs[graph.outputs.index(value)] = out.outputs[0]
    return str(out.outputs[0].name), str(wide.name)
