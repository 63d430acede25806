"""Read the ONNX file that an engine is built from, without its weights."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from exporters.onnx.longest_text import longest_text
from exporters.onnx.walk import load_whole_graph, stored_tensors
from qdq.onnx_files import model_file_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from exporters.tensorrt.profiles import Declared

__all__ = ["OnnxFile", "read_onnx_file"]


@dataclass(frozen=True)
class OnnxFile:
    """Describe an ONNX file.

    Args:
        path: The file.
        model: The graph. Its weights stay on disk.
        inputs: Shape of each input; free dimensions are names.
        longest: Number of positions of the model; see :func:`exporters.onnx.longest_text.longest_text`.
        is_quantized: Whether the graph has quantizers.
        onnx_bytes: Size of the file and the weights beside it.
        float_bytes: Size of the weights if they were in float32.
    """

    path: Path
    model: ir.Model
    inputs: Mapping[str, Declared]
    longest: int | None
    is_quantized: bool
    onnx_bytes: int
    float_bytes: int = field(default=0)


def read_onnx_file(given: Path) -> OnnxFile:
    """Read an exported directory, or an ONNX file of any exporter. Functions are replaced by their bodies.

    Raises:
        CheckpointError: If it is neither, or the directory has several files and no ``model.onnx``.
    """
    path = model_file_of(given)
    model = load_whole_graph(path)
    inputs = {
        str(value.name): tuple(
            size if isinstance(size, int) else (None if size.value is None else str(size.value))
            for size in (value.shape or ())
        )
        for value in model.graph.inputs
        if value.name not in model.graph.initializers
    }
    operators = {node.op_type for node in model.graph.all_nodes()}
    return OnnxFile(
        path,
        model,
        inputs,
        longest_text(path, model),
        bool(operators & {"QuantizeLinear", "DequantizeLinear"}),
        _bytes(path, model),
        sum(map(_float_size, stored_tensors(model))),
    )


def _bytes(path: Path, model: ir.Model) -> int:
    beside = {Path(tensor.path) for tensor in stored_tensors(model) if isinstance(tensor, ir.ExternalTensor)}
    files = {file.resolve() for file in (path, *beside)}
    return sum(file.stat().st_size for file in files if file.is_file())


def _float_size(tensor: ir.TensorProtocol) -> int:
    if tensor.dtype.name.startswith(("INT64", "INT32", "BOOL", "STRING")):
        return 0
    return 4 * int(tensor.size)
