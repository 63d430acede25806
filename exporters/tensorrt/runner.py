"""Run an engine on the GPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.runners.inputs import TensorInfo, check_inputs
from exporters.tensorrt.backend import find_backend, messages
from exporters.tensorrt.nvidia_driver import require_driver
from exporters.tensorrt.plan_metadata import metadata_path, read_metadata
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

_ALIGNMENT = 256  # bytes, of every address that TensorRT is given
_RECORDED = 16
"""Shapes whose graphs are kept; each has a context of its own, with the memory that the engine computes in."""

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
    raise DataError(describe_problems(f"no profile of the engine allows {asked}", allowed))


def _recorded(plan: Path) -> tuple[str, bool]:
    """From the record beside a plan: what built it, and whether it holds a lean runtime, code that runs on the CPU."""
    if not metadata_path(plan).is_file():
        return "auto", False
    record = read_metadata(plan)
    backend, _, _ = str(record.get("backend", "auto")).partition(" ")
    return backend, bool((record.get("options") or {}).get("version_compatible"))


def _fits(shape: tuple[int, ...], span: Span) -> bool:
    low, high = span
    return len(shape) == len(low) and all(a <= b <= c for a, b, c in zip(low, shape, high, strict=True))


def _shown(shape: Sequence[int]) -> str:
    return "x".join(map(str, shape))


@dataclass
class _Graph:
    """A recorded CUDA graph with the tensors that it reads and writes.

    The context is its own: what a graph replays is undefined once the context that it was recorded from is changed.
    """

    graph: torch.cuda.CUDAGraph
    context: Context
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]


class TensorRTRunner:
    """Runs a plan on the GPU; a :class:`exporters.runners.Runner`, and for torch tensors without copies.

    Args:
        plan: The engine, built on this kind of GPU with this version of TensorRT.
        backend: ``tensorrt``, ``tensorrt-rtx``, or ``auto``: what the plan's record names, else what is installed.
        cuda_graphs: Record every shape once and replay it, which spares the CPU's time of each launch. The last 16
            shapes are kept, each with memory of its own.
        device: The CUDA device to run on.

    Raises:
        BuildError: There is no GPU, or the plan was made by another version or for another GPU, or has inputs or
            outputs of a kind that no export of ours has.
        CheckpointError: There is no such file, or the record beside it is of another one.
        MissingPackageError: No TensorRT is installed.
    """

    def __init__(self, plan: Path, *, backend: str = "auto", cuda_graphs: bool = False, device: int = 0) -> None:
        if not plan.is_file():
            raise CheckpointError(f"{plan}: no such file")
        require_driver("running an engine")  # a runtime without a driver ends the process
        import torch

        if not torch.cuda.is_available():
            raise BuildError("running an engine needs a torch with CUDA: pip install torch from the CUDA index")
        built_by, host_code = _recorded(plan)
        found = find_backend(built_by if backend == "auto" else backend)
        logger, heard = messages(found)
        heard.clear()
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
            self._runtime.engine_host_code_allowed = host_code  # else version-compatible plans are refused
            engine: Engine | None = self._runtime.deserialize_cuda_engine(plan.read_bytes())
        if engine is None:
            reasons = heard.errors or ["it gives no reason"]
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
        problems = [f"{name} is {kind}, which torch has not" for name, kind in kinds.items() if kind not in _DTYPES]
        problems += [
            f"{name} is a shape, read or written on the CPU"
            for name in names
            if engine.get_tensor_location(name) != trt.TensorLocation.DEVICE
        ]
        if problems:
            raise BuildError(describe_problems(f"{plan} has inputs or outputs that cannot be given or taken", problems))
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
        """Outputs by name, on the CPU; see :class:`exporters.runners.Runner`."""
        tensors = {
            name: self._torch.tensor(array).to(self._device, self._types[name])
            for name, array in check_inputs(self._name, self.inputs, inputs).items()
        }
        found = self.run(tensors)
        return {name: (y.float() if y.dtype == self._torch.bfloat16 else y).cpu().numpy() for name, y in found.items()}

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Outputs by name, on the GPU; nothing is copied and nothing is waited for.

        The work is queued on torch's current stream, behind that of the calls before on whatever stream. With CUDA
        graphs the outputs are overwritten by the next call of the same shapes.

        Args:
            inputs: tensors of the engine's types, on the device, contiguous and not parts of others; those that are not
                are copied. Further ones are ignored.

        Raises:
            DataError: An input is missing or of another type, or no profile allows the shapes.
            BuildError: TensorRT failed.
        """
        self._check({name: (str(x.dtype).removeprefix("torch."), x.dim()) for name, x in inputs.items()})
        shapes = {name: tuple(inputs[name].shape) for name in self.input_names}
        profile = choose_profile(self._spans, shapes)
        with self._torch.cuda.device(self._device):
            stream = self._torch.cuda.current_stream(self._device)
            if self._last is not None and self._last != stream:
                stream.wait_stream(self._last)  # the contexts' memory is still in use there
            self._last = stream
            tensors = {name: self._ready(inputs[name]) for name in self.input_names}
            if self._cuda_graphs:
                return self._replayed(profile, shapes, tensors)
            if profile not in self._contexts:
                self._contexts[profile] = self._context(profile, stream.cuda_stream)
            return self._enqueued(self._contexts[profile], shapes, tensors)

    def _ready(self, x: Tensor) -> Tensor:
        """On the device, in one piece, and where TensorRT may read it."""
        x = x.to(self._device).contiguous()
        return x.clone() if x.data_ptr() % _ALIGNMENT else x

    def _address(self, name: str, x: Tensor) -> int:
        """Of a tensor; TensorRT wants one even where there is nothing (a cache of length 0), and no two alike."""
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
        key = (profile, *shapes.items())
        if key not in self._graphs:
            if len(self._graphs) == _RECORDED:
                self._torch.cuda.synchronize(self._device)  # the oldest may be at work
                del self._graphs[next(iter(self._graphs))]
            held = {name: x.clone() for name, x in tensors.items()}
            stream = self._torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            stream.wait_stream(self._torch.cuda.current_stream(self._device))
            context = self._context(profile, stream.cuda_stream)
            with self._torch.cuda.stream(stream):
                self._enqueued(context, shapes, held)  # once outside: TensorRT allocates when it sees a shape first
            stream.synchronize()
            graph = self._torch.cuda.CUDAGraph()
            with self._torch.cuda.graph(graph, stream=stream):
                outputs = self._enqueued(context, shapes, held)
            self._graphs[key] = _Graph(graph, context, held, outputs)
        recorded = self._graphs[key] = self._graphs.pop(key)  # the last one used goes last
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
