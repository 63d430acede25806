"""Read an ONNX file and leave its weights where they are.

A file of a gigabyte is nearly all weights, and who looks at its graph needs none of them. The file is walked in its
wire format: the bytes of a large initializer are not read, it becomes one of ONNX's external tensors that lies in the
very same file.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING

from exporters.onnx.wire import (
    BYTES,
    GRAPH_INITIALIZER,
    LARGE,
    MODEL_GRAPH,
    TENSOR_RAW_DATA,
    VARINT,
    delimited,
    fields,
    key_of,
)
from qdq.errors import CheckpointError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

__all__ = ["load_onnx"]

_TENSOR_EXTERNAL_DATA, _TENSOR_DATA_LOCATION = 13, 14  # fields of onnx.proto


def load_onnx(path: Path) -> ir.Model:
    """The model in ``path``, whose large tensors are read when somebody asks for their values.

    Raises:
        CheckpointError: when it is not an ONNX file, or ends too early.
    """
    import onnx
    import onnx_ir as ir

    try:
        with path.open("rb") as file:
            if not file.seek(0, 2):
                raise ValueError("the file is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                light = b"".join(_light_model(data, path.name))
        model: ir.Model = ir.from_proto(onnx.ModelProto.FromString(light))
        if not model.graph.outputs:  # protobuf takes many a file for a model without content
            raise ValueError("no graph with an output")
    except Exception as error:  # protobuf has its own tree of errors, and several libraries stand between
        raise CheckpointError(f"{path}: not an ONNX file ({error})") from error
    ir.external_data.set_base_dir(model.graph, path.parent.resolve())
    _check_data(model, path)
    return model


def _check_data(model: ir.Model, path: Path) -> None:
    """Weights must be as long as their shapes say: nobody reads them here, so nobody would stumble."""
    import onnx_ir as ir

    problems = []
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        file = Path(tensor.path)
        have = file.stat().st_size if file.is_file() else 0
        if tensor.length is not None and tensor.length != tensor.nbytes:
            problems.append(f"{value.name} has {tensor.length} bytes of data, its shape needs {tensor.nbytes}")
        elif (tensor.offset or 0) + tensor.nbytes > have:
            problems.append(f"{value.name} lies in {file.name}, which is missing or too short")
    if problems:
        raise CheckpointError(describe_problems(str(path), problems))


def _light_model(data: mmap.mmap, name: str) -> Iterator[bytes]:
    """The bytes of a ModelProto without its large weights."""
    for number, wire, start, begin, end in fields(data, 0, len(data)):
        if number == MODEL_GRAPH and wire == BYTES:
            graph = b"".join(_light_graph(data, begin, end, name))
            yield delimited(MODEL_GRAPH, graph)
        else:
            yield data[start:end]


def _light_graph(data: mmap.mmap, begin: int, end: int, name: str) -> Iterator[bytes]:
    for number, wire, start, first, last in fields(data, begin, end):
        if number == GRAPH_INITIALIZER and wire == BYTES and last - first > LARGE:
            yield delimited(GRAPH_INITIALIZER, b"".join(_light_tensor(data, first, last, name)))
        else:
            yield data[start:last]


def _light_tensor(data: mmap.mmap, begin: int, end: int, name: str) -> Iterator[bytes]:
    for number, wire, start, first, last in fields(data, begin, end):
        if number == TENSOR_RAW_DATA and wire == BYTES:
            for key, value in (("location", name), ("offset", str(first)), ("length", str(last - first))):
                entry = delimited(1, key.encode()) + delimited(2, value.encode())
                yield delimited(_TENSOR_EXTERNAL_DATA, entry)
            yield key_of(_TENSOR_DATA_LOCATION, VARINT) + b"\x01"
        else:
            yield data[start:last]
