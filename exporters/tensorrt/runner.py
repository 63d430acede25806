"""Run an engine on the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.runners.inputs import TensorInfo, check_inputs
from exporters.tensorrt.backend import find_backend, messages
from exporters.tensorrt.nvidia_driver import require_driver
from exporters.tensorrt.plan_metadata import metadata_path, read_metadata
from exporters.tensorrt.profiles import format_shape
from qdq.errors import BuildError, CheckpointError, DataError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch
    from numpy.typing import NDArray
    from torch import Tensor

    from exporters.tensorrt.protocols import Context, Engine, Runtime, TensorRT

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

_ALIGNMENT = 256  # bytes; TensorRT needs every address aligned to it
_RECORDED = 16
"""Number of shapes whose CUDA graphs are kept. Each has a context with its own memory for the computation."""

Span = tuple[tuple[int, ...], tuple[int, ...]]


def choose_profile(spans: Sequence[Mapping[str, Span]], shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return the index of the first profile that allows these shapes.

    Args:
        spans: Smallest and largest shape of each input, for every profile.
        shapes: Shapes of the inputs of one call.

    Raises:
        DataError: If no profile allows them. The message lists what each profile allows.
    """
    for index, span in enumerate(spans):
        if all(_fits(shape, span[name]) for name, shape in shapes.items()):
            return index
    asked = ", ".join(f"{name} {format_shape(shape)}" for name, shape in shapes.items())
    allowed = [
        f"profile {index}: "
        + ", ".join(f"{name} {format_shape(low)} to {format_shape(high)}" for name, (low, high) in span.items())
        for index, span in enumerate(spans)
    ]
    raise DataError(describe_problems(f"no profile of the engine allows {asked}", allowed))


def _backend_of(plan: Path) -> tuple[str, bool]:
    """Return the backend that built a plan, and whether the plan contains a lean runtime: code that runs on the CPU."""
    if not metadata_path(plan).is_file():
        return "auto", False
    metadata = read_metadata(plan)
    backend, _, _ = str(metadata.get("backend", "auto")).partition(" ")
    return backend, bool((metadata.get("options") or {}).get("version_compatible"))


def _fits(shape: tuple[int, ...], span: Span) -> bool:
    low, high = span
    return len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))


@dataclass
class _Graph:
    """Hold a recorded CUDA graph with the tensors that it reads and writes.

    It needs its own context: a graph is invalid once the context that it was recorded from changes.
    """

    graph: torch.cuda.CUDAGraph
    context: Context
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class TensorRTRunner:
    """Run an engine on the GPU, as a :class:`exporters.runners.Runner`, or with :meth:`run` on torch tensors.

    Args:
        plan: The engine, built for this type of GPU with this version of TensorRT.
        backend: ``tensorrt``, ``tensorrt-rtx``, or ``auto``: the one that the metadata of the plan names, else the one
            that is installed.
        cuda_graphs: Record every shape once and replay it, which saves the time that the CPU needs to launch kernels.
            The last 16 shapes are kept, each with its own memory.
        device: The CUDA device to run on.

    Raises:
        BuildError: If there is no GPU, the plan was built by another version or for another GPU, or it has inputs or
            outputs that cannot be torch tensors.
        CheckpointError: If the file does not exist, or the metadata beside it belongs to another plan.
        MissingPackageError: If no TensorRT is installed.
    """

    def __init__(self, plan: Path, *, backend: str = "auto", cuda_graphs: bool = False, device: int = 0) -> None:
        if not plan.is_file():
            raise CheckpointError(f"{plan}: no such file")
        require_driver("running an engine")  # without a driver TensorRT would end the process
        import torch

        if not torch.cuda.is_available():
            raise BuildError("running an engine needs a torch with CUDA: pip install torch from the CUDA index")
        built_by, host_code = _backend_of(plan)
        found = find_backend(built_by if backend == "auto" else backend)
        logger, received = messages(found)
        received.clear()
        trt: TensorRT = found.trt
        self._torch = torch
        self._name = str(plan)
        self._device = torch.device("cuda", device)
        self._cuda_graphs = cuda_graphs
        self._graphs: dict[tuple[Any, ...], _Graph] = {}
        self._spare: dict[str, Tensor] = {}
        self._last: torch.cuda.Stream | None = None
        with torch.cuda.device(self._device):
            self._runtime: Runtime = trt.Runtime(logger)  # must outlive its engine
            self._runtime.engine_host_code_allowed = host_code  # version-compatible plans need it
            engine: Engine | None = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            reasons = received.errors or ["it gives no reason"]
            raise BuildError(
                describe_problems(
                    f"{found.name} {found.version} cannot load {plan}: build it on this machine, or with "
                    "--version-compatible and --hardware-compatibility",
                    dict.fromkeys(" ".join(reason.split()) for reason in reasons),
                )
            )
        self._engine = engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
        kinds = {name: str(engine.get_tensor_dtype(name).name) for name in names}
        problems = [f"{name} is {kind}, which torch lacks" for name, kind in kinds.items() if kind not in _DTYPES]
        problems += [
            f"{name} is a shape, read or written on the CPU"
            for name in names
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE
        ]
        if problems:
            raise BuildError(describe_problems(f"{plan} has inputs or outputs that cannot be torch tensors", problems))
        self._types = {name: getattr(torch, _DTYPES[kind]) for name, kind in kinds.items()}
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
        """Return the outputs by name, on the CPU; see :class:`exporters.runners.Runner`."""
        tensors = {
            name: self._torch.tensor(array).to(self._device, self._types[name])
            for name, array in check_inputs(self._name, self.inputs, inputs).items()
        }
        found = self.run(tensors)
        return {name: (y.float() if y.dtype == self._torch.bfloat16 else y).cpu().numpy() for name, y in found.items()}

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs by name, on the GPU, without copies and without waiting.

        The work is queued on torch's current stream, behind the work of earlier calls on any stream. With CUDA graphs
        the next call with the same shapes overwrites the outputs.

        Args:
            inputs: Tensors by name. Tensors that are not on the device, not contiguous or not aligned are copied. Other
                inputs than those of the engine are ignored.

        Raises:
            DataError: If an input is missing or has another type, or no profile allows the shapes.
            BuildError: If TensorRT fails.
        """
        self._check({name: (str(x.dtype).removeprefix("torch."), x.dim()) for name, x in inputs.items()})
        shapes = {name: tuple(inputs[name].shape) for name in self.input_names}
        profile = choose_profile(self._spans, shapes)
        with self._torch.cuda.device(self._device):
            stream = self._torch.cuda.current_stream(self._device)
            if self._last is not None and self._last != stream:
                stream.wait_stream(self._last)  # the memory of the contexts is still in use there
            self._last = stream
            tensors = {name: self._ready(inputs[name]) for name in self.input_names}
            if self._cuda_graphs:
                return self._replayed(profile, shapes, tensors)
            if profile not in self._contexts:
                self._contexts[profile] = self._context(profile, stream.cuda_stream)
            return self._enqueued(self._contexts[profile], shapes, tensors)

    def _ready(self, x: Tensor) -> Tensor:
        """Return ``x`` on the device, contiguous and aligned; a copy if it is not."""
        x = x.to(self._device).contiguous()
        return x.clone() if x.data_ptr() % _ALIGNMENT else x

    def _address(self, name: str, x: Tensor) -> int:
        """Return the address of a tensor."""
        # TensorRT needs an address even for an empty tensor (a cache of length 0), and all addresses must differ.
        if x.numel():
            return x.data_ptr()
        if name not in self._spare:
            self._spare[name] = self._torch.empty(_ALIGNMENT, dtype=self._torch.uint8, device=self._device)
        return self._spare[name].data_ptr()

    def _enqueued(
        self, context: Context, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        stream = self._torch.cuda.current_stream(self._device).cuda_stream
        taken = [context.set_input_shape(name, shape) for name, shape in shapes.items()]
        taken += [context.set_tensor_address(name, self._address(name, x)) for name, x in tensors.items()]
        outputs = {}
        for name in self._output_names if all(taken) else ():
            shape = tuple(context.get_tensor_shape(name))
            if any(size < 0 for size in shape):
                raise BuildError(f"{self._name}: the shape of {name} is known only when it is computed")
            outputs[name] = self._torch.empty(shape, dtype=self._types[name], device=self._device)
            taken.append(context.set_tensor_address(name, self._address(name, outputs[name])))
        if not (all(taken) and context.execute_async_v3(stream)):
            raise BuildError(f"{self._name}: TensorRT failed at {shapes}")
        return outputs

    def _replayed(
        self, profile: int, shapes: Mapping[str, tuple[int, ...]], tensors: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        key = (profile, *shapes.items())  # a CUDA graph is fixed to its shapes and addresses
        if key not in self._graphs:
            if len(self._graphs) == _RECORDED:
                self._torch.cuda.synchronize(self._device)  # the oldest graph may still be running
                del self._graphs[next(iter(self._graphs))]
            held = {name: x.clone() for name, x in tensors.items()}
            stream = self._torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            stream.wait_stream(self._torch.cuda.current_stream(self._device))
            context = self._context(profile, stream.cuda_stream)
            with self._torch.cuda.stream(stream):
                # Run once before recording: TensorRT allocates memory when it sees a shape for the first time.
                self._enqueued(context, shapes, held)
            stream.synchronize()
            graph = self._torch.cuda.CUDAGraph()
            with self._torch.cuda.graph(graph, stream=stream):
                outputs = self._enqueued(context, shapes, held)
            self._graphs[key] = _Graph(graph, context, held, outputs)
        recorded = self._graphs[key] = self._graphs.pop(key)  # keeps the most recently used last
        for name, x in tensors.items():
            recorded.inputs[name].copy_(x, non_blocking=True)
        recorded.graph.replay()
        return dict(recorded.outputs)

    def _context(self, profile: int, stream: int) -> Context:
        context = self._engine.create_execution_context()
        if context is None or not context.set_optimization_profile_async(profile, stream):
            raise BuildError(f"{self._name}: there is no memory for profile {profile} on the GPU")
        return context

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
        problems = []
        for info in self.inputs:
            if info.name not in given:
                problems.append(f"the input {info.name} is missing (given: {', '.join(given) or 'none'})")
                continue
            kind, rank = given[info.name]
            wanted = str(self._types[info.name]).removeprefix("torch.")
            if kind != wanted:
                problems.append(f"the input {info.name} is {kind}, the engine takes {wanted}")
            if rank != len(info.shape):
                problems.append(f"the input {info.name} has {rank} dimensions, the engine takes {len(info.shape)}")
        if problems:
            raise DataError(describe_problems(self._name, problems))
