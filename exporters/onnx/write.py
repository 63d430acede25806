"""Write an ONNX file, one weight after the other."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from exporters.onnx.wire import GRAPH_INITIALIZER, LARGE, MODEL_GRAPH, TENSOR_RAW_DATA, begin_of

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["EXTERNAL_ABOVE", "write_onnx"]

EXTERNAL_ABOVE = 1_900_000_000
"""Bytes of weights that do not go into the file itself: protobuf holds less than 2 GiB."""


def write_onnx(model: ir.Model, path: Path) -> None:
    """Write ``model`` to ``path``; weights above 2 GB go to ``<path>.data`` beside it.

    Protobuf would hold the whole file in memory, twice. Here large weights are no part of the message that it makes:
    they follow as the last fields of the graph, which is where a message may have them.

    Raises:
        OSError: when the file cannot be written.
    """
    weights = model.graph.initializers
    sizes = {name: value.const_value.nbytes for name, value in weights.items() if value.const_value is not None}
    if sum(sizes.values()) > EXTERNAL_ABOVE:
        ir.save(model, path, external_data=f"{path.name}.data")
        return
    large = [weights.pop(name) for name, size in sizes.items() if size >= LARGE]
    try:
        proto = ir.to_proto(model)
    finally:
        for value in large:
            weights.add(value)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    entries = [(_head(value), value.const_value) for value in large if value.const_value is not None]
    begins = [begin_of(GRAPH_INITIALIZER, len(head) + tensor.nbytes) for head, tensor in entries]
    rest = sum(len(begin) + len(head) + tensor.nbytes for begin, (head, tensor) in zip(begins, entries, strict=True))
    with path.open("wb") as file:
        file.write(proto.SerializeToString() + begin_of(MODEL_GRAPH, len(graph) + rest) + graph)
        for begin, (head, tensor) in zip(begins, entries, strict=True):
            file.write(begin + head)
            file.write(tensor.tobytes())


def _head(weight: ir.Value) -> bytes:
    """A TensorProto up to its numbers."""
    import onnx

    tensor = weight.const_value
    assert tensor is not None
    proto = onnx.TensorProto(name=weight.name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
    head: bytes = proto.SerializeToString()
    return head + begin_of(TENSOR_RAW_DATA, tensor.nbytes)
