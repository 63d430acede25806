"""Run files in ONNX Runtime."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.runners.file_runner import FileRunner, existing_file, one_line
from exporters.runners.inputs import TensorInfo, check_inputs
from qdq.errors import CheckpointError, ExportError, QDQError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["OnnxRuntimeRunner"]

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    "tensor(int8)": "int8",
    "tensor(int16)": "int16",
    "tensor(int32)": "int32",
    "tensor(int64)": "int64",
    "tensor(uint8)": "uint8",
    "tensor(uint16)": "uint16",
    "tensor(uint32)": "uint32",
    "tensor(uint64)": "uint64",
}

# Errors of ONNX Runtime that mean a damaged or incomplete file. Others mean a model that it cannot run.
_UNREADABLE = {"InvalidArgument", "InvalidProtobuf", "NoModel", "NoSuchFile", "NotFound"}


class OnnxRuntimeRunner(FileRunner):
    """Run an ONNX model in ONNX Runtime on the CPU.

    Args:
        path: The model file, or its bytes if the model has no external data.
        threads: Threads within one operator; None leaves the choice to the runtime.
        optimize: Whether the runtime optimizes the graph. Without it every tensor is computed as it is written.
        session_config: Further session entries, such as ``{"session.intra_op.allow_spinning": "0"}``.
        profile_to: Beginning of the name of a file for a profile; see :meth:`end_profiling`.

    Raises:
        CheckpointError: If the file is missing, damaged or incomplete.
        ExportError: If ONNX Runtime cannot run the model.
    """

    def __init__(
        self,
        path: Path | bytes,
        *,
        threads: int | None = None,
        optimize: bool = True,
        session_config: Mapping[str, str] | None = None,
        profile_to: Path | None = None,
    ) -> None:
        os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")  # telemetry leaves a file in the temporary directory
        import onnxruntime as ort

        self._name = "the model in memory" if isinstance(path, bytes) else str(existing_file(path))
        options = ort.SessionOptions()
        options.log_severity_level = 4  # errors arrive as exceptions, and stderr belongs to the caller
        if threads is not None:
            options.intra_op_num_threads = threads
        if profile_to is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(profile_to)
        if not optimize:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            for key, value in (session_config or {}).items():
                options.add_session_config_entry(key, value)
            self._session = ort.InferenceSession(
                path if isinstance(path, bytes) else str(path), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # the errors of the runtime have no common base below Exception
            raise _loading_error(self._name, error) from error
        self.inputs = tuple(
            TensorInfo(i.name, _dtype(i.type, i.name, self._name), tuple(i.shape)) for i in self._session.get_inputs()
        )
        self._output_names = tuple(o.name for o in self._session.get_outputs())
        self.output_ranks = {o.name: len(o.shape) for o in self._session.get_outputs()}

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name; see :class:`Runner`."""
        fed = check_inputs(self._name, self.inputs, inputs)
        try:
            arrays = self._session.run(self._output_names, fed)
        except Exception as error:  # as above
            raise _running_error(self._name, error, fed) from error
        return dict(zip(self._output_names, arrays, strict=True))

    def end_profiling(self) -> str:
        """End the profile that ``profile_to`` began, and return the path of its file."""
        return str(self._session.end_profiling())


def _loading_error(name: str, error: Exception) -> QDQError:
    text = one_line(error)
    if type(error).__name__ in _UNREADABLE or "external data" in text.lower():
        return CheckpointError(f"{name}: ONNX Runtime cannot read it: {text}")
    return ExportError(f"{name}: ONNX Runtime cannot run it: {text}")


def _running_error(name: str, error: Exception, inputs: Mapping[str, NDArray[Any]]) -> ExportError:
    text = one_line(error)
    if "out of data bounds" in text:
        where = re.search(r"Name:'([^']+)'", text)
        shapes = ", ".join(f"{key} {' x '.join(map(str, array.shape))}" for key, array in inputs.items())
        return ExportError(
            f"{name}: {where[1] if where else 'a Gather'} looks up a number beyond the end of its table, for the "
            f"inputs {shapes}: give fewer tokens (--seq-len, or --shape), or ids within the vocabulary"
        )
    return ExportError(f"{name}: ONNX Runtime failed: {text}")


def _dtype(kind: str, tensor: str, model: str) -> np.dtype[Any]:
    if kind not in _DTYPES:
        raise ExportError(f"{model}: the input {tensor} is a {kind}, for which numpy has no type")
    return np.dtype(_DTYPES[kind])
