"""Read the graph of an ONNX file without its weights.

Nearly all of a large file is weights, and looking at its graph needs none of them. The bytes of a large initializer are
not read: it becomes one of ONNX's external tensors, which lies in the same file.
"""

from __future__ import annotations

import mmap
from pathlib import Path
from typing import TYPE_CHECKING

from exporters.onnx.proto_fields import (
    GRAPH_INITIALIZER,
    LARGE_TENSOR,
    MODEL_GRAPH,
    TENSOR_DATA_LOCATION,
    TENSOR_EXTERNAL_DATA,
    TENSOR_RAW_DATA,
)
from qdq.errors import CheckpointError, StorageError, describe_problems
from qdq.protobuf import BYTES, VARINT, encode_bytes_field, encode_key, read_fields
from qdq.storage import is_pointer, refuse_pointer

if TYPE_CHECKING:
    from collections.abc import Iterator

    import onnx_ir as ir

__all__ = ["load_onnx"]

_ENTRY_KEY, _ENTRY_VALUE = 1, 2  # fields of StringStringEntryProto


def load_onnx(path: Path) -> ir.Model:
    """Load the model in ``path``. The values of large tensors are read when they are first used.

    Raises:
        CheckpointError: If the file is missing, is not an ONNX file, is a pointer of Git LFS, or is incomplete.
        StorageError: If the file cannot be read.
    """
    import onnx
    import onnx_ir as ir

    refuse_pointer(path)
    try:
        with path.open("rb") as file:
            if not file.seek(0, 2):
                raise ValueError("the file is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                light = b"".join(_light_model(data, path.name))
        model: ir.Model = ir.from_proto(onnx.ModelProto.FromString(light))
        if not model.graph.outputs:  # many a file that is not ONNX parses as a model without content
            raise ValueError("no graph with an output")
    except (PermissionError, IsADirectoryError, NotADirectoryError) as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except Exception as error:  # the errors of protobuf and onnx have no common base below Exception
        raise CheckpointError(f"{path}: not an ONNX file ({error})") from error
    ir.external_data.set_base_dir(model.graph, path.parent.resolve())
    _check_data(model, path)
    return model


def _check_data(model: ir.Model, path: Path) -> None:
    """Check that weights are as long as their shapes say; without reading them nothing else would notice."""
    import onnx_ir as ir

    problems = []
    stored = [value for graph in (model.graph, *model.graph.subgraphs()) for value in graph.initializers.values()]
    for value in stored:
        tensor = value.const_value
        if not isinstance(tensor, ir.ExternalTensor):
            continue
        file = Path(tensor.path)
        refuse_pointer(file)
        have = file.stat().st_size if file.is_file() else 0
        if tensor.length is not None and tensor.length != tensor.nbytes:
            problems.append(f"{value.name} has {tensor.length} bytes of data, its shape needs {tensor.nbytes}")
        elif (tensor.offset or 0) + tensor.nbytes > have:
            what = "a Git LFS pointer (git lfs pull fetches the file)" if is_pointer(file) else "missing or too short"
            problems.append(f"{value.name} lies in {file.name}, which is {what}")
    if problems:
        raise CheckpointError(describe_problems(str(path), problems))


def _light_model(data: mmap.mmap, name: str) -> Iterator[bytes]:
    """Yield the bytes of a ModelProto without its large weights."""
    for field in read_fields(data):
        if field.number == MODEL_GRAPH and field.wire_type == BYTES:
            graph = b"".join(_light_graph(data, field.begin, field.end, name))
            yield encode_bytes_field(MODEL_GRAPH, graph)
        else:
            yield data[field.start : field.end]


def _light_graph(data: mmap.mmap, begin: int, end: int, name: str) -> Iterator[bytes]:
    for field in read_fields(data, begin, end):
        is_large = field.end - field.begin > LARGE_TENSOR
        if field.number == GRAPH_INITIALIZER and field.wire_type == BYTES and is_large:
            tensor = b"".join(_light_tensor(data, field.begin, field.end, name))
            yield encode_bytes_field(GRAPH_INITIALIZER, tensor)
        else:
            yield data[field.start : field.end]


def _light_tensor(data: mmap.mmap, begin: int, end: int, name: str) -> Iterator[bytes]:
    for field in read_fields(data, begin, end):
        if field.number == TENSOR_RAW_DATA and field.wire_type == BYTES:
            location = {"location": name, "offset": str(field.begin), "length": str(field.end - field.begin)}
            for key, value in location.items():
                entry = encode_bytes_field(_ENTRY_KEY, key.encode()) + encode_bytes_field(_ENTRY_VALUE, value.encode())
                yield encode_bytes_field(TENSOR_EXTERNAL_DATA, entry)
            yield encode_key(TENSOR_DATA_LOCATION, VARINT) + b"\x01"  # EXTERNAL
        else:
            yield data[field.start : field.end]
