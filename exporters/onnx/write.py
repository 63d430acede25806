"""Write an ONNX file one weight at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from exporters.onnx.proto_fields import GRAPH_INITIALIZER, LARGE_TENSOR, MODEL_GRAPH, TENSOR_RAW_DATA
from qdq.protobuf import encode_bytes_header

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ["EXTERNAL_ABOVE", "write_onnx"]

EXTERNAL_ABOVE = 1_900_000_000
"""Bytes of weights from which on they are written beside the file: a protobuf message holds less than 2 GiB."""


def write_onnx(model: ir.Model, path: Path) -> None:
    """Write ``model`` to ``path``; weights above 2 GB go to ``<path>.data`` beside it.

    Args:
        model: The model. It is unchanged afterwards.
        path: The file to write.

    Raises:
        OSError: If the file cannot be written.
    """
    # Protobuf would hold the whole file in memory, twice. So it serializes the model without its large weights, and
    # they follow as the last fields of the graph: the fields of a message may come in any order.
    weights = model.graph.initializers
    sizes = {name: value.const_value.nbytes for name, value in weights.items() if value.const_value is not None}
    if sum(sizes.values()) > EXTERNAL_ABOVE:
        ir.save(model, path, external_data=f"{path.name}.data")
        return
    large = [weights.pop(name) for name, size in sizes.items() if size >= LARGE_TENSOR]
    try:
        proto = ir.to_proto(model)
    finally:
        for value in large:
            weights.add(value)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    entries = [(_head(value), value.const_value) for value in large if value.const_value is not None]
    headers = [encode_bytes_header(GRAPH_INITIALIZER, len(head) + tensor.nbytes) for head, tensor in entries]
    rest = sum(len(header) + len(head) + tensor.nbytes for header, (head, tensor) in zip(headers, entries, strict=True))
    with path.open("wb") as file:
        file.write(proto.SerializeToString() + encode_bytes_header(MODEL_GRAPH, len(graph) + rest) + graph)
        for header, (head, tensor) in zip(headers, entries, strict=True):
            file.write(header + head)
            file.write(tensor.tobytes())


def _head(weight: ir.Value) -> bytes:
    """Return the bytes of a TensorProto that stand before its values."""
    import onnx

    tensor = weight.const_value
    assert tensor is not None
    proto = onnx.TensorProto(name=weight.name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
    head: bytes = proto.SerializeToString()
    return head + encode_bytes_header(TENSOR_RAW_DATA, tensor.nbytes)
