"""Cut a quantized graph at its quantizers, so that every piece can be run on its own.

One flipped rounding step grows through the layers, so two correct implementations differ end to end. Between two
quantizers they must not: fed the same integers, both find the same integers again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import onnx_ir as ir

from exporters.onnx.load import load_onnx
from exporters.onnx.passes.graph import constant, is_op, producer
from qdq.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    import numpy as np

__all__ = ["Cut", "CutModel", "cut_at_quantizers"]


@dataclass(frozen=True)
class Cut:
    """One place where the graph was cut.

    Args:
        slot: dotted name of the quantizer, ``encoder.layers.0.attention.query.input_quantizer``.
        output: graph output with the integers that the piece before finds.
        input: graph input for the integers that the piece behind reads.
        zero_point: of the graph, which may hold the grid shifted (uint8 for int8).
        dtype: of the integers.
        perm: how the graph transposes the tensor of this slot before it quantizes it, None when it does not.
    """

    slot: str
    output: str
    input: str
    zero_point: int
    dtype: np.dtype[np.generic]
    perm: tuple[int, ...] | None = None


@dataclass(frozen=True)
class CutModel:
    """A serialized model with all its cuts; its own inputs and outputs are still there."""

    model: bytes
    cuts: tuple[Cut, ...]


def cut_at_quantizers(path: Path) -> CutModel:
    """Load a model and cut it behind every QuantizeLinear of a computed tensor (or the Clip that follows it).

    Raises:
        CheckpointError: when it is not an ONNX file, or has quantizers that are not of our making.
    """
    model = load_onnx(path)
    graph = model.graph
    cuts = []
    for node in list(graph):
        if not is_op(node, "QuantizeLinear") or constant(node.inputs[0]) is not None:
            continue
        zero_point = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if zero_point is None or zero_point.ndim:
            raise CheckpointError(f"{path}: {node.name} has no zero point that is one constant, as all of ours have")
        last = next((use.node for use in node.outputs[0].uses() if is_op(use.node, "Clip")), node)
        q = last.outputs[0]
        fed = ir.Value(
            name=f"{q.name}__fed", shape=q.shape, type=ir.TensorType(ir.DataType.from_numpy(zero_point.dtype))
        )
        q.replace_all_uses_with(fed)
        q.type = fed.type
        graph.inputs.append(fed)
        graph.outputs.append(q)
        slot = str(node.name).rpartition("/")[0]
        moved = producer(node.inputs[0], "Transpose")
        perm = (
            tuple(moved.attributes.get_ints("perm"))
            if moved is not None and moved.name == f"{slot}/Transpose"
            else None
        )
        cuts.append(Cut(slot, str(q.name), str(fed.name), int(zero_point), zero_point.dtype, perm))
    return CutModel(ir.to_proto(model).SerializeToString(), tuple(cuts))
