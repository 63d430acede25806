"""Read the ONNX file that an engine is built from, without its weights."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from exporters.onnx.load import load_onnx
from qdq.errors import CheckpointError, QDQError
from qdq.source import MODEL_FILE, ModelDirectory
from qdq.storage import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    import onnx_ir as ir

    from exporters.tensorrt.profiles import Declared

__all__ = ["OnnxFile", "read_onnx_file"]


@dataclass(frozen=True)
class OnnxFile:
    """Describe an ONNX file.

    Args:
        path: The file.
        model: The graph. Its weights stay on disk.
        inputs: Shape of each input; free dimensions are names.
        longest: Number of positions of the model, None if it is unknown.
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
    """Read an exported directory, or an ONNX file of any exporter.

    Raises:
        CheckpointError: If it is neither.
    """
    path, folder = given, given.parent
    if given.is_dir():
        path, folder = given / MODEL_FILE, given
        if not path.is_file():
            raise CheckpointError(
                f"{given} is not an export: it has no {MODEL_FILE}; give a directory that qdq export wrote",
            )
    elif not given.is_file():
        raise CheckpointError(f"{given}: no such file or directory")
    model = load_onnx(path)
    inputs = {
        str(value.name): tuple(
            size if isinstance(size, int) else (None if size.value is None else str(size.value))
            for size in (value.shape or ())
        )
        for value in model.graph.inputs
        if value.name not in model.graph.initializers
    }
    operators = {node.op_type for node in model.graph}
    return OnnxFile(
        path,
        model,
        inputs,
        _longest(folder),
        bool(operators & {"QuantizeLinear", "DequantizeLinear"}),
        _bytes(path, model),
        sum(_float_size(value) for value in model.graph.initializers.values()),
    )


def _bytes(path: Path, model: ir.Model) -> int:
    beside = {
        tensor.path
        for value in model.graph.initializers.values()
        if (tensor := value.const_value) is not None and hasattr(tensor, "path")
    }
    files = {path.resolve()} | {Path(other).resolve() for other in beside}
    return sum(file.stat().st_size for file in files if file.is_file())


def _float_size(value: ir.Value) -> int:
    tensor = value.const_value
    if tensor is None or tensor.dtype.name.startswith(("INT64", "INT32", "BOOL", "STRING")):
        return 0
    return 4 * int(tensor.size)


def _longest(folder: Path) -> int | None:
    """Return the longest text that the configuration beside the file allows, None if that is unknown."""
    with suppress(QDQError):
        return ModelDirectory.of(folder).config.max_length
    # The configuration may be of a family that is not ours: its ONNX file is as good as any other.
    with suppress(QDQError):
        positions = read_json(folder / "config.json").get("max_position_embeddings")
        return positions if isinstance(positions, int) else None
    return None
