"""Run an engine on the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.runners import TensorInfo
from exporters.tensorrt.backend import find_backend, messages
from exporters.tensorrt.driver import require_driver
from qdq.errors import BuildError, CheckpointError, DataError, describe_faults

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from exporters.tensorrt.api import Context, Engine, Runtime, TensorRT

__all__ = ["TensorRTRunner", "choose_profile"]

_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "BF16": "bfloat16",
    "INT8": "int8",
    "UINT8": "uint8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
}
"""TensorRT's names of element types -> torch's."""

Span = tuple[tuple[int, ...], tuple[int, ...]]


def choose_profile(spans: Sequence[Mapping[str, Span]], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """The first profile that allows these shapes.

    Args:
        spans: of every profile, least and largest shape of each input.
        shapes: of the inputs of one call.

    Raises:
        DataError: when no profile does; what each allows is told.
    """
    for index, span in enumerate(spans):
        if all(_fits(shape, span[name]) for name, shape in shapes.items()):
            return index
    asked = ", ".join(f"{name} {_shown(shape)}" for name, shape in shapes.items())
    allowed = [
        f"profile {index}: "
        + ", ".join(f"{name} {_shown(low)} to {_shown(high)}" for name, (low, high) in span.items())
        for index, span in enumerate(spans)
    ]
    raise DataError(describe_faults(f"no profile of the engine allows {asked}", allowed))


def _fits(shape: tuple[int, ...], span: Span) -> bool:
    low, high = span
    return len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))


def _shown(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


@dataclass
class _Graph:
    """A recorded CUDA graph with the tensors that it reads and writes."""

    graph: torch.cuda.CUDAGraph
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class TensorRTRunner:
    """Runs a plan on the GPU; a :class:`exporters.runners.Runner`, and for torch tensors without copies.

    Args:
        plan: The engine, built on this kind of GPU with this version of TensorRT.
        backend: ``auto``, ``tensorrt`` or ``tensorrt-rtx``.
        cuda_graphs: Record every shape once and replay it, which spares the CPU's time of each launch.
        device: The CUDA device to run on.

    Raises:
        BuildError: There is no GPU, or the plan was made by another version or for another GPU.
        CheckpointError: There is no such file.
        MissingPackageError: No TensorRT is installed.
    """

    def __init__(self, plan: Path, *, backend: str = "auto", cuda_graphs: bool = False, device: int = 0) -> None:
        if not plan.is_file():
            raise CheckpointError(f"{plan}: no such file")
        require_driver("running an engine")  # a runtime without a driver ends the process
        import torch

        if not torch.cuda.is_available():
            raise BuildError("running an engine needs a torch with CUDA: pip install torch from the CUDA index")
        found = find_backend(backend)
        logger, heard = messages(found)
        heard.clear()
        trt: TensorRT = found.trt
        self._torch = torch
        self._name = str(plan)
        self._device = torch.device("cuda", device)
        self._cuda_graphs = cuda_graphs
        self._graphs: dict[tuple[Any, ...], _Graph] = {}
        with torch.cuda.device(self._device):
            self._runtime: Runtime = trt.Runtime(logger)  # must outlive its engine
            engine: Engine | None = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            reasons = heard.errors or ["it gives no reason"]
            raise BuildError(
                describe_faults(
                    f"{found.name} {found.version} cannot load {plan}: build it on this machine, or with "
                    "--version-compatible and --hardware-compatibility",
                    dict.fromkeys(" ".join(reason.split()) for reason in reasons),
                )
            )
        self._engine = engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        self._types = {name: getattr(torch, _DTYPES[engine.get_tensor_dtype(name).name]) for name in names}
        self.inputs = tuple(self._info(name) for name in inputs)
        self._output_names = tuple(name for name in names if name not in inputs)
        self._spans = [self._span(index, inputs) for index in range(engine.num_optimization_profiles)]
        self._contexts: dict[int, Context] = {}

    @property
    def input_names(self) -> tuple[str, ...]:
        """Names of the engine's inputs, in order."""
        return tuple(info.name for info in self.inputs)

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the engine's outputs, in order."""
        return self._output_names

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Outputs by name, on the CPU; see :class:`exporters.runners.Runner`."""
        self._check({name: (str(array.dtype), array.ndim) for name, array in inputs.items()})
        tensors = {
            name: self._torch.from_numpy(np.ascontiguousarray(inputs[name])).to(self._device)
            for name in self.input_names
        }
        found = self.run(tensors)
        return {name: (y.float() if y.dtype == self._torch.bfloat16 else y).cpu().numpy() for name, y in found.items()}

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name, on the GPU; nothing is copied and nothing is waited for.

        The work is queued on torch's current stream. With CUDA graphs the outputs are overwritten by the next call of
        the same shapes.

        Args:
            inputs: contiguous tensors on the device, of the engine's types. Others are ignored.

        Raises:
            DataError: An input is missing or of another type, or no profile allows the shapes.
            BuildError: TensorRT failed.
        """
        self._check({name: (str(x.dtype).removeprefix("torch."), x.dim()) for name, x in inputs.items()})
        tensors = {name: inputs[name].to(self._device).contiguous() for name in self.input_names}
        shapes = {name: tuple(x.shape) for name, x in tensors.items()}
        profile = choose_profile(self._spans, shapes)
        with self._torch.cuda.device(self._device):
            if self._cuda_graphs:
                return self._replayed(profile, shapes, tensors)
            return self._enqueued(profile, shapes, tensors)

    def _enqueued(
        self, profile: int, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        stream = self._torch.cuda.current_stream(self._device).cuda_stream
        context = self._context(profile, stream)
        for name, shape in shapes.items():
            context.set_input_shape(name, shape)
            context.set_tensor_address(name, tensors[name].data_ptr())
        outputs = {}
        for name in self._output_names:
            shape = tuple(context.get_tensor_shape(name))
            outputs[name] = self._torch.empty(shape, dtype=self._types[name], device=self._device)
            context.set_tensor_address(name, outputs[name].data_ptr())
        if not context.execute_async_v3(stream):
            raise BuildError(f"{self._name}: TensorRT failed at {shapes}")
        return outputs

    def _replayed(
        self, profile: int, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        key = (profile, *shapes.items())
        if key not in self._graphs:
            held = {name: x.clone() for name, x in tensors.items()}
            stream = self._torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            stream.wait_stream(self._torch.cuda.current_stream(self._device))
            with self._torch.cuda.stream(stream):
                self._enqueued(profile, shapes, held)  # once outside: TensorRT allocates when it sees a shape first
            stream.synchronize()
            graph = self._torch.cuda.CUDAGraph()
            with self._torch.cuda.graph(graph, stream=stream):
                outputs = self._enqueued(profile, shapes, held)
            self._graphs[key] = _Graph(graph, held, outputs)
        recorded = self._graphs[key]
        for name, x in tensors.items():
            recorded.inputs[name].copy_(x, non_blocking=True)
        recorded.graph.replay()
        return dict(recorded.outputs)

    def _context(self, profile: int, stream: int) -> Context:
        if profile not in self._contexts:
            context = self._engine.create_execution_context()
            if context is None or not context.set_optimization_profile_async(profile, stream):
                raise BuildError(f"{self._name}: there is no memory for profile {profile} on the GPU")
            self._contexts[profile] = context
        return self._contexts[profile]

    def _info(self, name: str) -> TensorInfo:
        kind = str(self._types[name]).removeprefix("torch.")
        shape = tuple(None if size < 0 else int(size) for size in self._engine.get_tensor_shape(name))
        return TensorInfo(name, np.dtype("float32" if kind == "bfloat16" else kind), shape)

    def _span(self, profile: int, inputs: Sequence[str]) -> dict[str, Span]:
        found = {}
        for name in inputs:
            low, _, high = self._engine.get_tensor_profile_shape(name, profile)
            found[name] = (tuple(low), tuple(high))
        return found

    def _check(self, given: Mapping[str, tuple[str, int]]) -> None:
        faults = []
        for info in self.inputs:
            if info.name not in given:
                faults.append(f"the input {info.name} is missing (given: {', '.join(given) or 'none'})")
                continue
            kind, rank = given[info.name]
            wanted = str(self._types[info.name]).removeprefix("torch.")
            if kind != wanted:
                faults.append(f"the input {info.name} is {kind}, the engine takes {wanted}")
            if rank != len(info.shape):
                faults.append(f"the input {info.name} has {rank} dimensions, the engine takes {len(info.shape)}")
        if faults:
            raise DataError(describe_faults(self._name, faults))
