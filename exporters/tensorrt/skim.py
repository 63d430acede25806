"""Read an ONNX file and leave its weights where they are.

A file of a gigabyte is nearly all weights, and who looks at its graph needs none of them. The file is walked in its
wire format (https://protobuf.dev/programming-guides/encoding): the bytes of a large initializer are not read, the
initializer becomes one of ONNX's external tensors that lies in the very same file.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING

from qdq.errors import CheckpointError, describe_faults

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

__all__ = ["skim"]

_LARGE = 1 << 16  # bytes; below it a weight is not worth the trouble

# Field numbers of onnx.proto.
_MODEL_GRAPH = 7
_GRAPH_INITIALIZER = 5
_TENSOR_RAW_DATA = 9
_TENSOR_EXTERNAL_DATA = 13
_TENSOR_DATA_LOCATION = 14

# Wire types.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5

_Buffer = mmap.mmap
_Field = tuple[int, int, int, int, int]  # number, wire type, start of the field, start and end of its content


def skim(path: Path) -> ir.Model:
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
    except OSError:
        raise
    except Exception as error:  # protobuf has its own tree of errors, and several libraries stand between
        raise CheckpointError(f"{path}: not an ONNX file ({error})") from error
    ir.external_data.set_base_dir(model.graph, path.parent.resolve())
    _check_data(model, path)
    return model


def _check_data(model: ir.Model, path: Path) -> None:
    """Weights must be as long as their shapes say: nobody reads them here, so nobody would stumble."""
    import onnx_ir as ir

    faults = []
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        file = Path(tensor.path)
        have = file.stat().st_size if file.is_file() else 0
        if tensor.length is not None and tensor.length != tensor.nbytes:
            faults.append(f"{value.name} has {tensor.length} bytes of data, its shape needs {tensor.nbytes}")
        elif (tensor.offset or 0) + tensor.nbytes > have:
            faults.append(f"{value.name} lies in {file.name}, which is missing or too short")
    if faults:
        raise CheckpointError(describe_faults(str(path), faults))


def _light_model(data: _Buffer, name: str) -> Iterator[bytes]:
    """The bytes of a ModelProto without its large weights."""
    for number, wire, start, begin, end in _fields(data, 0, len(data)):
        if number == _MODEL_GRAPH and wire == _BYTES:
            graph = b"".join(_light_graph(data, begin, end, name))
            yield _delimited(_MODEL_GRAPH, graph)
        else:
            yield data[start:end]


def _light_graph(data: _Buffer, begin: int, end: int, name: str) -> Iterator[bytes]:
    for number, wire, start, first, last in _fields(data, begin, end):
        if number == _GRAPH_INITIALIZER and wire == _BYTES and last - first > _LARGE:
            yield _delimited(_GRAPH_INITIALIZER, b"".join(_light_tensor(data, first, last, name)))
        else:
            yield data[start:last]


def _light_tensor(data: _Buffer, begin: int, end: int, name: str) -> Iterator[bytes]:
    for number, wire, start, first, last in _fields(data, begin, end):
        if number == _TENSOR_RAW_DATA and wire == _BYTES:
            for key, value in (("location", name), ("offset", str(first)), ("length", str(last - first))):
                entry = _delimited(1, key.encode()) + _delimited(2, value.encode())
                yield _delimited(_TENSOR_EXTERNAL_DATA, entry)
            yield _key(_TENSOR_DATA_LOCATION, _VARINT) + b"\x01"
        else:
            yield data[start:last]


def _fields(data: _Buffer, begin: int, end: int) -> Iterator[_Field]:
    position = begin
    while position < end:
        start = position
        key, position = _varint(data, position, end)
        number, wire = key >> 3, key & 7
        first = position
        if wire == _VARINT:
            _, position = _varint(data, position, end)
        elif wire == _FIXED64:
            position += 8
        elif wire == _FIXED32:
            position += 4
        elif wire == _BYTES:
            length, first = _varint(data, position, end)
            position = first + length
        else:
            raise ValueError(f"no such wire type: {wire}")
        if position > end or not number:
            raise ValueError("the file ends too early, or is no protobuf")
        yield number, wire, start, first, position


def _varint(data: _Buffer, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("the file ends too early, or is no protobuf")


def _key(number: int, wire: int) -> bytes:
    return _written(number << 3 | wire)


def _delimited(number: int, content: bytes) -> bytes:
    return _key(number, _BYTES) + _written(len(content)) + content


def _written(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
