"""Run files in OpenVINO."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.runners.file_runner import FileRunner, existing_file, one_line
from exporters.runners.inputs import TensorInfo, check_inputs
from qdq.errors import CheckpointError, ExportError, MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from numpy.typing import NDArray

__all__ = ["OpenVINORunner"]


class OpenVINORunner(FileRunner):
    """Run an ONNX model, or OpenVINO's own ``.xml``, in OpenVINO on the CPU.

    Args:
        path: The model file.
        threads: Threads of the inference; None leaves the choice to the runtime.
        precision_hint: Type to compute in what is not quantized. By default it is float32, as the model says: OpenVINO
            itself would choose bf16 on CPUs that have it, so that results of two machines could not be compared. For
            the same reason, inputs of weight-only products are never rounded to int8, as it would do on CPUs with VNNI.

    Raises:
        MissingPackageError: If OpenVINO is not installed.
        CheckpointError: If the file is missing, or OpenVINO cannot read it.
        ExportError: If OpenVINO cannot run the model.
    """

    def __init__(self, path: Path, *, threads: int | None = None, precision_hint: str = "f32") -> None:
        try:
            import openvino as ov
        except ModuleNotFoundError as error:
            raise MissingPackageError("openvino", extra="openvino", purpose="running a model in OpenVINO") from error

        self._name = str(existing_file(path))
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision_hint}
        # With a group size, CPUs with VNNI round the inputs of weight-only products to int8 in every call.
        config["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = "0"
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        core = ov.Core()
        try:
            model = core.read_model(str(path))
        except RuntimeError as error:
            raise CheckpointError(f"{self._name}: OpenVINO cannot read it: {one_line(error)}") from error
        # The names must be read before compiling, which adds aliases to them.
        self.inputs = tuple(_info(port) for port in model.inputs)
        self._output_names = tuple(_output_name(port) for port in model.outputs)
        ranks = (port.get_partial_shape().rank for port in model.outputs)
        self.output_ranks = {
            name: rank.get_length() if rank.is_static else None
            for name, rank in zip(self._output_names, ranks, strict=True)
        }
        try:
            self._model = core.compile_model(model, "CPU", config)
        except RuntimeError as error:
            raise ExportError(f"{self._name}: OpenVINO cannot run it: {one_line(error)}") from error

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name; see :class:`Runner`."""
        fed = check_inputs(self._name, self.inputs, inputs)
        try:
            arrays = self._model(fed)
        except RuntimeError as error:
            raise ExportError(f"{self._name}: OpenVINO failed: {one_line(error)}") from error
        return {name: arrays[index] for index, name in enumerate(self._output_names)}


def _info(port: Any) -> TensorInfo:
    shape = tuple(size.get_length() if size.is_static else None for size in port.get_partial_shape())
    return TensorInfo(port.get_any_name(), np.dtype(port.get_element_type().to_dtype()), shape)


def _output_name(port: Any) -> str:
    """Return the name of an output in the ONNX file: a tensor may have several, but its result node has that one."""
    names: set[str] = port.get_names()
    own: str = port.get_node().get_friendly_name().removesuffix("/sink_port_0")
    return own if own in names or not names else min(names)
