"""Protocols for the part of TensorRT's Python interface that qdq uses.

NVIDIA publishes no type information, and names differ between 10.x and 11.x. Every call is declared here, so that mypy
checks the code against it, and a test checks this file against each version.

The numbers of enumerations differ between versions. Take members from the module in use, never numbers.
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
        """Return the bytes without a copy."""


class TimingCache(Protocol):
    """``ITimingCache``."""

    def serialize(self) -> HostMemory:
        """Return the cache as bytes."""

    def combine(self, input_cache: TimingCache, ignore_mismatch: bool) -> bool:
        """Add the timings of another cache."""


class Profile(Protocol):
    """``IOptimizationProfile``."""

    def set_shape(self, input: str, min: Sequence[int], opt: Sequence[int], max: Sequence[int]) -> None:  # noqa: A002
        """Set the shapes of one input. They are checked only when the engine is built."""


class Config(Protocol):
    """``IBuilderConfig``."""

    builder_optimization_level: int
    hardware_compatibility_level: Any
    profiling_verbosity: Any
    progress_monitor: Any

    def add_optimization_profile(self, profile: Profile) -> int:
        """Return the index of the profile, negative if it is invalid."""

    def set_flag(self, flag: Any) -> None:
        """Switch a flag on."""

    def clear_flag(self, flag: Any) -> None:
        """Switch a flag off."""

    def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        """Limit a memory pool, in bytes."""

    def create_timing_cache(self, serialized_timing_cache: bytes) -> TimingCache | None:
        """Make a cache from bytes, which may be empty."""

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        """Return whether the cache was accepted."""

    def get_timing_cache(self) -> TimingCache | None:
        """Return the cache in use."""


class NetworkTensor(Protocol):
    """``ITensor``."""

    name: str
    shape: Sequence[int]
    dtype: Any


class Network(Protocol):
    """``INetworkDefinition``."""

    num_inputs: int

    def get_input(self, index: int) -> NetworkTensor:
        """Return an input; there are ``num_inputs``."""


class ParserError(Protocol):
    """``ParserError``."""

    def desc(self) -> str:
        """Describe the error."""

    def node_name(self) -> str:
        """Return the name of the node that could not be read."""

    def node_operator(self) -> str:
        """Return the operator of that node."""


class Parser(Protocol):
    """``OnnxParser``."""

    num_errors: int

    def parse_from_file(self, model: str) -> bool:
        """Return whether the file could be read. It is also true for a file that is not ONNX."""

    def get_error(self, index: int) -> ParserError:
        """Return an error; there are ``num_errors``."""


class Builder(Protocol):
    """``Builder``."""

    def create_network(self, flags: int) -> Network:
        """Make an empty network."""

    def create_builder_config(self) -> Config:
        """Make a configuration with default values."""

    def create_optimization_profile(self) -> Profile:
        """Make an empty profile."""

    def build_serialized_network(self, network: Network, config: Config) -> HostMemory | None:
        """Build the engine. Return None if that fails; the reason goes to the logger."""


class Inspector(Protocol):
    """``EngineInspector``."""

    def get_engine_information(self, format: Any) -> str:  # noqa: A002
        """Describe all layers."""


class Context(Protocol):
    """``IExecutionContext``."""

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        """Select a profile."""

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        """Set the shape of one input for the next run."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """Return the shape of a tensor. Set the shapes of all inputs first."""

    def set_tensor_address(self, name: str, memory: int) -> bool:
        """Set the address where an input is read or an output is written."""

    def execute_async_v3(self, stream_handle: int) -> bool:
        """Enqueue a run, and return whether that succeeded."""


class Engine(Protocol):
    """``ICudaEngine``."""

    num_io_tensors: int
    num_optimization_profiles: int

    def get_tensor_name(self, index: int) -> str:
        """Return the name of an input or output; there are ``num_io_tensors``."""

    def get_tensor_mode(self, name: str) -> Any:
        """Return whether a tensor is an input or an output."""

    def get_tensor_location(self, name: str) -> Any:
        """Return whether a tensor is on the GPU, or on the CPU as shapes are."""

    def get_tensor_dtype(self, name: str) -> Any:
        """Return the element type of a tensor."""

    def get_tensor_shape(self, name: str) -> Sequence[int]:
        """Return the shape of a tensor, with -1 for free dimensions."""

    def get_tensor_profile_shape(self, name: str, profile_index: int) -> Sequence[Sequence[int]]:
        """Return the smallest, the optimal and the largest shape of an input."""

    def create_execution_context(self) -> Context | None:
        """Make a context with memory of its own. Return None if there is not enough."""

    def create_engine_inspector(self) -> Inspector:
        """Make an inspector of this engine."""


class Runtime(Protocol):
    """``Runtime``. Without an NVIDIA driver it crashes the process."""

    engine_host_code_allowed: bool

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Engine | None:
        """Load an engine. Return None if it is not a plan for this version and device."""


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
