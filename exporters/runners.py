"""Runners: arrays in, arrays out, whatever computes in between.

Evaluation, verification and timing see a :class:`Runner` and nothing of its runtime. All runners have the same manners:

1. an input the model does not have is ignored, so one batch serves every model;
2. a missing input, a wrong dtype, rank or fixed length is a :class:`~qdq.errors.DataError`, all of them at once; ids
   in int64 are taken by a model that declares int32;
3. what the runtime itself refuses arrives as an error of this package that names the file.
"""

from __future__ import annotations

import inspect
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from qdq.errors import CheckpointError, DataError, ExportError, MissingPackageError, QDQError, describe_faults

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from torch import nn

__all__ = ["EvaluatorRunner", "OnnxRuntimeRunner", "OpenVINORunner", "Runner", "TensorInfo", "TorchRunner"]

STANDARD_INPUTS = ("input_ids", "attention_mask", "token_type_ids")

ORT_DTYPES = {
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

# What ONNX Runtime raises for a file that is no whole model, as opposed to a model it cannot run.
ORT_UNREADABLE = {"InvalidArgument", "InvalidProtobuf", "NoModel", "NoSuchFile", "NotFound"}


class Runner(Protocol):
    """Computes named arrays from named arrays.

    ``input_ids``, ``attention_mask`` and ``token_type_ids`` are integers ``(batch, seq)``; what comes back depends on
    the task: ``last_hidden_state`` ``(batch, seq, hidden)``, ``logits`` ``(batch, labels)``, and so on.
    """

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs that must be given."""

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in the model's order."""

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name. Inputs that the model does not have are ignored.

        Raises:
            DataError: An input is missing or is not of the dtype and shape the model declares.
        """


@dataclass(frozen=True)
class TensorInfo:
    """An input as the model declares it. A free dimension of ``shape`` is its name, or None when it has none."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]


class _OfFile:
    """What the runners of a file have in common: the names that the file gives."""

    inputs: tuple[TensorInfo, ...]
    _output_names: tuple[str, ...]

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the model's inputs, in order."""
        return tuple(i.name for i in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the model's outputs, in order."""
        return self._output_names


class OnnxRuntimeRunner(_OfFile):
    """Runs an ONNX model in ONNX Runtime on the CPU.

    Args:
        path: The model file, or its bytes (only for a model without external data).
        threads: Threads within one operator; None leaves the choice to the runtime.
        optimize: False switches all graph optimizations off, so that every tensor is computed as it is written.
        session_config: Further session entries, such as ``{"session.intra_op.allow_spinning": "0"}``.
        profile_to: Beginning of the name of a file in which the runtime keeps times; see :meth:`end_profiling`.

    Raises:
        CheckpointError: The file is missing, damaged or incomplete.
        ExportError: ONNX Runtime cannot run the model.
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
        import onnxruntime as ort

        self._name = "the model in memory" if isinstance(path, bytes) else str(_existing(path))
        options = ort.SessionOptions()
        options.log_severity_level = 4  # what goes wrong arrives as an exception; stderr belongs to the caller
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
        except Exception as error:  # the runtime's own errors have no common base below Exception
            raise _loading_error(self._name, error) from error
        self.inputs = tuple(
            TensorInfo(i.name, _ort_dtype(i.type, i.name, self._name), tuple(i.shape))
            for i in self._session.get_inputs()
        )
        self._output_names = tuple(o.name for o in self._session.get_outputs())

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name; see :class:`Runner`."""
        feed = _feed(self._name, self.inputs, inputs)
        try:
            arrays = self._session.run(self._output_names, feed)
        except Exception as error:  # as above
            raise ExportError(f"{self._name}: ONNX Runtime failed: {_one_line(error)}") from error
        return dict(zip(self._output_names, arrays, strict=True))

    def end_profiling(self) -> str:
        """The file with the times of all runs so far, of a runner that was given ``profile_to``."""
        return str(self._session.end_profiling())


class OpenVINORunner(_OfFile):
    """Runs an ONNX model (or OpenVINO's own ``.xml``) in OpenVINO on the CPU.

    Args:
        path: The model file.
        threads: Threads of the inference; None leaves the choice to the runtime.
        precision_hint: Arithmetic of what is not quantized. OpenVINO alone would take bf16 where the CPU has it, which
            makes figures of two machines incomparable; f32 is what the model says.

    Raises:
        MissingPackageError: OpenVINO is not installed.
        CheckpointError: The file is missing or OpenVINO cannot read it.
        ExportError: OpenVINO cannot run the model.
    """

    def __init__(self, path: Path, *, threads: int | None = None, precision_hint: str = "f32") -> None:
        try:
            import openvino as ov
        except ModuleNotFoundError as error:
            raise MissingPackageError("openvino", extra="openvino", purpose="running a model in OpenVINO") from error

        self._name = str(_existing(path))
        config: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision_hint}
        if threads is not None:
            config["INFERENCE_NUM_THREADS"] = threads
        core = ov.Core()
        try:
            model = core.read_model(str(path))
        except RuntimeError as error:
            raise CheckpointError(f"{self._name}: OpenVINO cannot read it: {_one_line(error)}") from error
        # Names are taken before compiling, which adds aliases to them.
        self.inputs = tuple(_openvino_info(port) for port in model.inputs)
        self._output_names = tuple(_openvino_output_name(port) for port in model.outputs)
        try:
            self._model = core.compile_model(model, "CPU", config)
        except RuntimeError as error:
            raise ExportError(f"{self._name}: OpenVINO cannot run it: {_one_line(error)}") from error

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name; see :class:`Runner`."""
        feed = _feed(self._name, self.inputs, inputs)
        try:
            arrays = self._model(feed)
        except RuntimeError as error:
            raise ExportError(f"{self._name}: OpenVINO failed: {_one_line(error)}") from error
        return {name: arrays[index] for index, name in enumerate(self._output_names)}


class EvaluatorRunner(_OfFile):
    """Runs an ONNX model in the reference evaluator of onnx: slowly, but with every type that ONNX has.

    Args:
        path: The model file, or its bytes (only for a model without external data).

    Raises:
        CheckpointError: The file is missing or damaged.
        ExportError: The evaluator cannot run the model.
    """

    def __init__(self, path: Path | bytes) -> None:
        import onnx
        from onnx.reference import ReferenceEvaluator

        self._name = "the model in memory" if isinstance(path, bytes) else str(_existing(path))
        try:
            proto = onnx.load_from_string(path) if isinstance(path, bytes) else onnx.load(path)
        except Exception as error:  # protobuf has its own tree of errors
            raise CheckpointError(f"{self._name}: not an ONNX file ({error})") from error
        self.inputs = tuple(_onnx_info(value) for value in proto.graph.input)
        self._output_names = tuple(value.name for value in proto.graph.output)
        try:
            self._evaluator = ReferenceEvaluator(proto)
        except Exception as error:  # whatever an operator that it does not have raises
            raise ExportError(f"{self._name}: onnx's evaluator cannot run it: {_one_line(error)}") from error

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name; see :class:`Runner`."""
        feed = _feed(self._name, self.inputs, inputs)
        try:
            arrays = self._evaluator.run(None, feed)
        except Exception as error:  # numpy's and the operators' own
            raise ExportError(f"{self._name}: onnx's evaluator failed: {_one_line(error)}") from error
        return dict(zip(self._output_names, arrays, strict=True))


class TorchRunner:
    """Runs a torch model: without gradients, in eval mode, on the device its parameters are on.

    Args:
        model: Called with tensors by name; returns an output with ``items()``, as those of ``qdq.models`` do, or a
            mapping. A module that is in training mode is back in it after each call.
        input_names: What the model is given. Default: those of input_ids, attention_mask and token_type_ids that its
            ``forward`` takes.
        output_names: What comes back, and in which order. Default: every tensor of the output; their names are then
            known after the first call and :attr:`output_names` is empty before.
    """

    def __init__(
        self, model: nn.Module, *, input_names: Sequence[str] | None = None, output_names: Sequence[str] | None = None
    ) -> None:
        self.model = model
        self._input_names = tuple(input_names) if input_names is not None else _standard_inputs(model)
        self._wanted = None if output_names is None else tuple(output_names)
        self._output_names = self._wanted or ()

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the inputs the model is given."""
        return self._input_names

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs, in order."""
        return self._output_names

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name; see :class:`Runner`. bfloat16, which numpy does not have, becomes float32."""
        import torch

        name = type(self.model).__name__
        _raise_faults(name, _missing(self._input_names, inputs))
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        tensors = {n: torch.tensor(np.asarray(inputs[n]), device=device) for n in self._input_names}
        with torch.inference_mode(), _evaluating(self.model):
            output = dict(self.model(**tensors).items())

        if self._wanted is None:
            self._output_names = tuple(n for n, value in output.items() if isinstance(value, torch.Tensor))
        elif absent := [n for n in self._wanted if not isinstance(output.get(n), torch.Tensor)]:
            raise ExportError(f"{name} gives no tensor {', '.join(absent)}; it gives {', '.join(output) or 'nothing'}")
        return {n: _to_numpy(output[n]) for n in self._output_names}


def _existing(path: Path) -> Path:
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: no such model file")
    return Path(path)


def _missing(names: Sequence[str], inputs: Mapping[str, Any]) -> list[str]:
    return [
        f"the input {name} is missing (given: {', '.join(inputs) or 'none'})" for name in names if name not in inputs
    ]


def _raise_faults(name: str, faults: Sequence[str]) -> None:
    if faults:
        raise DataError(describe_faults(name, faults))


def _feed(name: str, infos: Sequence[TensorInfo], inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The inputs the model has, as arrays; raises :class:`DataError` with everything that does not fit."""
    feed = {info.name: np.asarray(inputs[info.name]) for info in infos if info.name in inputs}
    faults = _missing([info.name for info in infos], inputs)
    for info in infos:
        array = feed.get(info.name)
        if array is None:
            continue
        if str(array.dtype) == "int64" and str(info.dtype) == "int32" and np.array_equal(array, array.astype(np.int32)):
            array = feed[info.name] = array.astype(np.int32)
        if array.dtype != info.dtype:
            faults.append(f"the input {info.name} is {array.dtype}, the model takes {info.dtype}")
        if array.ndim != len(info.shape) or any(
            isinstance(size, int) and size != given for size, given in zip(info.shape, array.shape, strict=True)
        ):
            declared = ", ".join("?" if size is None else str(size) for size in info.shape)
            faults.append(f"the input {info.name} has the shape {array.shape}, the model takes ({declared})")
    _raise_faults(name, faults)
    return feed


def _one_line(error: Exception) -> str:
    """The runtime's message without the lines that name its own source files."""
    lines = [line for line in str(error).splitlines() if not line.startswith(("Exception from ", "Check '"))]
    return " ".join(" ".join(lines or [str(error)]).split())


def _loading_error(name: str, error: Exception) -> QDQError:
    text = _one_line(error)
    if type(error).__name__ in ORT_UNREADABLE or "external data" in text.lower():
        return CheckpointError(f"{name}: ONNX Runtime cannot read it: {text}")
    return ExportError(f"{name}: ONNX Runtime cannot run it: {text}")


def _ort_dtype(kind: str, tensor: str, model: str) -> np.dtype[Any]:
    if kind not in ORT_DTYPES:
        raise ExportError(f"{model}: the input {tensor} is a {kind}, for which numpy has no type")
    return np.dtype(ORT_DTYPES[kind])


def _onnx_info(value: Any) -> TensorInfo:
    from onnx.helper import tensor_dtype_to_np_dtype

    kind = value.type.tensor_type
    shape = tuple(d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in kind.shape.dim)
    return TensorInfo(value.name, np.dtype(tensor_dtype_to_np_dtype(kind.elem_type)), shape)


def _openvino_info(port: Any) -> TensorInfo:
    shape = tuple(size.get_length() if size.is_static else None for size in port.get_partial_shape())
    return TensorInfo(port.get_any_name(), np.dtype(port.get_element_type().to_dtype()), shape)


def _openvino_output_name(port: Any) -> str:
    """The output's name in the ONNX file. A tensor may have several; the result node carries the one of the output."""
    names: set[str] = port.get_names()
    own: str = port.get_node().get_friendly_name().removesuffix("/sink_port_0")
    return own if own in names or not names else min(names)


def _standard_inputs(model: nn.Module) -> tuple[str, ...]:
    parameters = inspect.signature(model.forward).parameters
    takes_all = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return tuple(name for name in STANDARD_INPUTS if takes_all or name in parameters)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards exactly those modules are in training mode that were before."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _to_numpy(tensor: Any) -> NDArray[Any]:
    import torch

    tensor = tensor.detach().cpu()
    array: NDArray[Any] = (tensor.float() if tensor.dtype is torch.bfloat16 else tensor).numpy()
    return array
