"""The part of TensorRT's Python interface that we use, as types.

NVIDIA publishes no type information, and names come and go between 10.x and 11.x. Everything that we call is written
down here, so that mypy holds our code to it, and a test holds this file to what each version has.

Enumerations are renumbered from version to version: members are always taken from the module in use, never as numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = [
    "Builder",
    "Config",
    "Context",
    "Engine",
    "HostMemory",
    "Inspector",
    "Network",
    "NetworkTensor",
    "Parser",
    "ParserError",
    "Profile",
    "Runtime",
    "TensorRT",
    "TimingCache",
]


class HostMemory(Protocol):
    """``IHostMemory``: bytes that TensorRT owns."""

    nbytes: int

    def __buffer__(self, flags: int, /) -> memoryview:
        """The bytes, not copied."""


class TimingCache(Protocol):
    """``ITimingCache``."""

    def serialize(self) -> HostMemory:
        """To bytes."""

    def combine(self, input_cache: TimingCache, ignore_mismatch: bool) -> bool:
        """Take over what another knows."""


class Profile(Protocol):
    """``IOptimizationProfile``."""

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:  # noqa: A002
        """The shapes of one input; checked only when the engine is built."""


class Config(Protocol):
    """``IBuilderConfig``."""

    builder_optimization_level: int
    hardware_compatibility_level: Any
    profiling_verbosity: Any
    progress_monitor: Any

    def add_optimization_profile(self, profile: Profile) -> int:
        """The index of the profile, negative when it is refused."""

    def set_flag(self, flag: Any) -> None:
        """Switch on."""

    def clear_flag(self, flag: Any) -> None:
        """Switch off."""

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        """In bytes."""

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache | None:
        """From bytes, which may be empty."""

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        """Whether it was taken."""

    def get_timing_cache(self) -> TimingCache | None:
        """The one in use."""


class NetworkTensor(Protocol):
    """``ITensor``."""

    name: str
    shape: Sequence[int]
    dtype: Any


class Network(Protocol):
    """``INetworkDefinition``."""

    num_inputs: int

    def get_input(self, index: int) -> NetworkTensor:
        """One of ``num_inputs``."""


class ParserError(Protocol):
    """``ParserError``."""

    def desc(self) -> str:
        """What is wrong."""

    def node_name(self) -> str:
        """Of the node that could not be read."""

    def node_operator(self) -> str:
        """Its type."""


class Parser(Protocol):
    """``OnnxParser``."""

    num_errors: int

    def parse_from_file(self, model: str) -> bool:
        """Whether it could be read. Also true for bytes that are no ONNX at all."""

    def get_error(self, index: int) -> ParserError:
        """One of ``num_errors``."""


class Builder(Protocol):
    """``Builder``."""

    def create_network(self, flags: int) -> Network:
        """An empty one."""

    def create_builder_config(self) -> Config:
        """With everything at its default."""

    def create_optimization_profile(self) -> Profile:
        """An empty one."""

    def build_serialized_network(self, network: Network, config: Config) -> HostMemory | None:
        """The engine; None when it failed, and the reason went to the logger."""


class Inspector(Protocol):
    """``EngineInspector``."""

    def get_engine_information(self, format: Any) -> str:  # noqa: A002
        """All layers."""


class Context(Protocol):
    """``IExecutionContext``."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """Choose a profile."""

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        """Of one input, for the next run."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """Known once all input shapes are set."""

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Where an input is read, an output written."""

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Whether it could be enqueued."""


class Engine(Protocol):
    """``ICudaEngine``."""

    num_io_tensors: int
    num_optimization_profiles: int

    def get_tensor_name(self, index: int) -> str:
        """One of ``num_io_tensors``."""

    def get_tensor_mode(self, name: str) -> Any:
        """Input or output."""

    def get_tensor_location(self, name: str) -> Any:
        """Of an input or output: on the GPU, or on the CPU as shapes are."""

    def get_tensor_dtype(self, name: str) -> Any:
        """Element type."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """-1 where it is dynamic."""

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]:
        """Least, best and largest shape of an input."""

    def create_execution_context(self) -> Context | None:
        """With memory of its own."""

    def create_engine_inspector(self) -> Inspector:
        """To look inside."""


class Runtime(Protocol):
    """``Runtime``; crashes the process where there is no driver."""

    engine_host_code_allowed: bool

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        """None when it is not a plan of this version and device."""


class TensorRT(Protocol):
    """The module, ``tensorrt`` or ``tensorrt_rtx``."""

    __version__: str
    ILogger: Any
    Logger: Any
    IProgressMonitor: Any
    Builder: Any
    OnnxParser: Any
    Runtime: Any
    # Enumerations
    BuilderFlag: Any
    DataType: Any
    HardwareCompatibilityLevel: Any
    LayerInformationFormat: Any
    MemoryPoolType: Any
    NetworkDefinitionCreationFlag: Any
    ProfilingVerbosity: Any
    TensorIOMode: Any
    TensorLocation: Any
