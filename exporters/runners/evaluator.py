"""Run files in the reference evaluator of onnx."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.runners.file_runner import FileRunner, existing_file, one_line
from exporters.runners.float32_sums import float32_sums
from exporters.runners.inputs import TensorInfo, check_inputs
from qdq.errors import CheckpointError, ExportError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["EvaluatorRunner"]


class EvaluatorRunner(FileRunner):
    """Run an ONNX model in the reference evaluator of onnx, which is slow but has every type of ONNX.

    Sums in half precision are computed in float32; see :func:`exporters.runners.float32_sums.float32_sums`.

    Args:
        path: The model file, or its bytes if the model has no external data.

    Raises:
        CheckpointError: If the file is missing or damaged.
        ExportError: If the evaluator cannot run the model.
    """

    def __init__(self, path: Path | bytes) -> None:
        import onnx
        from onnx.reference import ReferenceEvaluator

        self._name = "the model in memory" if isinstance(path, bytes) else str(existing_file(path))
        try:
            proto = onnx.load_from_string(path) if isinstance(path, bytes) else onnx.load(path)
        except Exception as error:  # the errors of protobuf have no common base below Exception
            raise CheckpointError(f"{self._name}: not an ONNX file ({error})") from error
        self.inputs = tuple(_info(value) for value in proto.graph.input)
        self._output_names = tuple(value.name for value in proto.graph.output)
        try:
            opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
            self._evaluator = ReferenceEvaluator(proto, new_ops=float32_sums(opset))
        except Exception as error:  # an unknown operator raises errors of many types
            raise ExportError(f"{self._name}: onnx's evaluator cannot run it: {one_line(error)}") from error

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name; see :class:`Runner`."""
        fed = check_inputs(self._name, self.inputs, inputs)
        try:
            arrays = self._evaluator.run(None, fed)
        except Exception as error:  # numpy and the operators raise errors of many types
            raise ExportError(f"{self._name}: onnx's evaluator failed: {one_line(error)}") from error
        return dict(zip(self._output_names, arrays, strict=True))


def _info(value: Any) -> TensorInfo:
    from onnx.helper import tensor_dtype_to_np_dtype

    kind = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim)
    return TensorInfo(value.name, np.dtype(tensor_dtype_to_np_dtype(kind.elem_type)), shape)
