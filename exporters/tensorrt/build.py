"""Build an engine from an ONNX file.

The network is strongly typed: every tensor has the type that the file gives it, so int8 is exactly where the quantizers
are. The engine is written whole or not at all.
"""

from __future__ import annotations

import logging
import signal
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from exporters.tensorrt.backend import Backend, find_backend, messages
from exporters.tensorrt.build_options import HARDWARE, BuildOptions
from exporters.tensorrt.kernels import Kernel, parse_inspector, parse_layers
from exporters.tensorrt.onnx_file import read_onnx_file
from exporters.tensorrt.profiles import check_profiles, default_profile
from qdq.errors import BuildError, describe_problems
from qdq.processes import Interruption
from qdq.storage import write_bytes_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from exporters.tensorrt.backend import Messages
    from exporters.tensorrt.profiles import Profile
    from exporters.tensorrt.protocols import Builder, Config, HostMemory, Network, Parser, TensorRT

__all__ = ["BuildOptions", "BuildResult", "build", "check_options"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildResult:
    """Describe an engine that was built.

    Args:
        backend: ``tensorrt`` or ``tensorrt-rtx``, with its version.
        plan_bytes: Size of the engine.
        onnx_bytes: Size of the ONNX file with its weights.
        float_bytes: Size of the weights if they were in float32.
        seconds: Time of the build, parsing included.
        profiles: The optimization profiles, in order.
        kernels: The kernels, in the order in which they run; empty if TensorRT did not list them.
        options: The options of the build.
        warnings: Warnings of TensorRT, each once.
    """

    backend: str
    plan_bytes: int
    onnx_bytes: int
    float_bytes: int
    seconds: float
    profiles: Sequence[Profile]
    kernels: Sequence[Kernel]
    options: BuildOptions
    warnings: Sequence[str] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "backend": self.backend,
            "plan_bytes": self.plan_bytes,
            "onnx_bytes": self.onnx_bytes,
            "float_bytes": self.float_bytes,
            "seconds": self.seconds,
            "profiles": [profile.to_dict() for profile in self.profiles],
            "options": self.options.to_dict(),
            "warnings": list(self.warnings),
        }


def check_options(options: BuildOptions, *, backend: Backend | None = None, quantized: bool = False) -> list[str]:
    """Return a line for each option that is invalid or does not fit the others.

    Args:
        options: The options.
        backend: The TensorRT to build with; None checks only what holds for all.
        quantized: Whether the file has quantizers.
    """
    problems = []
    if options.hardware not in HARDWARE:
        problems.append(f"no hardware compatibility {options.hardware!r}: it must be one of {', '.join(HARDWARE)}")
    if options.optimization_level is not None and not 0 <= options.optimization_level <= 5:
        problems.append(f"optimization level {options.optimization_level}: it must be from 0 to 5")
    if options.workspace_mb is not None and options.workspace_mb < 1:
        problems.append(f"a workspace of {options.workspace_mb} MiB: it must be 1 or more")
    if (options.refit or options.strip) and quantized:
        problems.append(
            "an int8 engine cannot be refitted or stripped: scales are folded into its kernels (build the float "
            "export, or leave --refit and --strip out)"
        )
    if backend is not None and backend.is_rtx:
        if options.refit or options.strip:
            problems.append("TensorRT-RTX cannot build refittable or stripped engines without a GPU")
        if options.timing_cache is not None:
            problems.append("TensorRT-RTX has no timing cache: leave --timing-cache out")
        if options.version_compatible:
            problems.append("TensorRT-RTX has no lean runtime: leave --version-compatible out")
        if options.hardware != "none":
            problems.append("TensorRT-RTX engines run on every GPU it knows: leave --hardware-compatibility out")
    return problems


def build(
    source: Path,
    output: Path,
    *,
    profiles: Sequence[Profile] | None = None,
    options: BuildOptions | None = None,
    backend: str | Backend = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> BuildResult:
    """Build an engine and write it to ``output``.

    Args:
        source: An exported directory, or an ONNX file.
        output: The plan to write. An older file there is replaced.
        profiles: The shapes that the engine must work for; None takes
            :func:`exporters.tensorrt.profiles.default_profile`.
        options: Options of the build, the default ones if None.
        backend: ``auto``, ``tensorrt`` or ``tensorrt-rtx``, or a backend.
        progress: Called with the phase of the builder, the steps that are done and the number of steps.

    Returns:
        What was built.

    Raises:
        BuildError: If shapes or options are invalid (all problems are listed), or TensorRT cannot build the file.
        CheckpointError: If the file is not ONNX.
        MissingPackageError: If no TensorRT is installed.
        StorageError: If the plan cannot be written.
        KeyboardInterrupt: If interrupted. Nothing is written then.
    """
    options = options or BuildOptions()
    model = read_onnx_file(source)
    if profiles is None:
        profiles = [default_profile(model.inputs, longest=model.longest or 512)]
    problems = check_profiles(profiles, model.inputs, longest=model.longest)
    problems += check_options(options, quantized=model.is_quantized)
    if not problems:  # report mistakes in the options before a missing installation
        backend = find_backend(backend) if isinstance(backend, str) else backend
        problems += check_options(options, backend=backend)
    if problems:
        raise BuildError(describe_problems(f"{source} cannot be built like this", dict.fromkeys(problems)))
    assert isinstance(backend, Backend)

    start = time.perf_counter()
    logger, received = messages(backend)
    received.clear()
    # An exception that passes through the builder's C++ frames would end the process, so it asks between two steps.
    with Interruption(signal.SIGINT, patient=True) as interruption, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorRT's own deprecations
        plan = _serialized(backend.trt, logger, model.path, profiles, options, progress, lambda: interruption.came)
        if interruption.came:
            raise KeyboardInterrupt
    if plan is None:
        raise BuildError(
            describe_problems(f"{backend.name} {backend.version} cannot build {model.path}", _errors(received))
        )
    seconds = time.perf_counter() - start
    data = memoryview(plan)
    kernels = parse_layers(received.layers) if received.layers else _inspected(backend, logger, data)
    write_bytes_atomic(output, data)
    return BuildResult(
        f"{backend.name} {backend.version}",
        data.nbytes,
        model.onnx_bytes,
        model.float_bytes,
        seconds,
        tuple(profiles),
        tuple(kernels),
        options,
        tuple(received.warnings),
    )


def _serialized(
    trt: TensorRT,
    logger: Any,
    path: Path,
    profiles: Sequence[Profile],
    options: BuildOptions,
    progress: Callable[[str, int, int], None] | None,
    interrupted: Callable[[], bool],
) -> HostMemory | None:
    builder: Builder = trt.Builder(logger)
    # Flags are bits, and their positions differ between versions.
    network: Network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser: Parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise BuildError(describe_problems(f"TensorRT cannot read {path}", _parser_problems(parser)))
    if interrupted():
        return None
    config = builder.create_builder_config()
    _configure(trt, config, options)
    for profile in profiles:
        made = builder.create_optimization_profile()
        for name in (network.get_input(index).name for index in range(network.num_inputs)):
            made.set_shape(name, profile.min[name], profile.opt[name], profile.max[name])
        if config.add_optimization_profile(made) < 0:
            raise BuildError(f"TensorRT refuses the profile {profile}")
    config.progress_monitor = _monitor(trt, progress, interrupted)
    if options.timing_cache is None:
        return builder.build_serialized_network(network, config)
    with _timing_cache(config, options.timing_cache):
        return builder.build_serialized_network(network, config)


def _configure(trt: TensorRT, config: Config, options: BuildOptions) -> None:
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # needed for the list of kernels
    flags = {
        trt.BuilderFlag.TF32: options.tf32,
        trt.BuilderFlag.VERSION_COMPATIBLE: options.version_compatible,
        trt.BuilderFlag.REFIT: options.refit or options.strip,  # a stripped plan gets its weights by refitting
        trt.BuilderFlag.STRIP_PLAN: options.strip,
    }
    for flag, wanted in flags.items():
        (config.set_flag if wanted else config.clear_flag)(flag)
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if options.optimization_level is not None:
        config.builder_optimization_level = options.optimization_level
    if options.hardware != "none":
        config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, HARDWARE[options.hardware])


def _parser_problems(parser: Parser) -> list[str]:
    problems = []
    for index in range(parser.num_errors):
        problem = parser.get_error(index)
        where = " ".join(part for part in (problem.node_name(), f"({problem.node_operator()})") if part.strip("()"))
        problems.append(f"{where}: {_one_line(problem.desc())}" if where else _one_line(problem.desc()))
    return list(dict.fromkeys(problems)) or ["its parser gives no reason"]


def _errors(received: Messages) -> list[str]:
    return list(dict.fromkeys(_one_line(error) for error in received.errors)) or ["it gives no reason"]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _inspected(backend: Backend, logger: Any, plan: memoryview) -> list[Kernel]:
    """List the kernels of the finished engine if a GPU can load it."""
    from exporters.tensorrt.nvidia_driver import driver_problem

    if driver_problem() is not None:
        return []
    trt = backend.trt
    runtime = trt.Runtime(logger)
    runtime.engine_host_code_allowed = True  # safe, because this process has just built the engine
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        return []
    return parse_inspector(engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON))


def _monitor(trt: TensorRT, progress: Callable[[str, int, int], None] | None, interrupted: Callable[[], bool]) -> Any:
    """Make a monitor that passes the progress on, and that stops the builder after an interrupt."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._totals: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:  # noqa: ARG002
            self._totals[phase_name] = num_steps

        def phase_finish(self, phase_name: str) -> None:
            self._totals.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            if progress is not None:
                progress(phase_name, step + 1, self._totals.get(phase_name, step + 1))
            return not interrupted()

    return Monitor()


@contextmanager
def _timing_cache(config: Config, path: Path) -> Iterator[None]:
    """Use the timings of the file, and add the new ones to the file afterwards."""
    cache = config.create_timing_cache(path.read_bytes() if path.is_file() else b"")
    if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
        _LOG.warning("%s: made by another version or for another GPU; it is replaced", path)
        empty = config.create_timing_cache(b"")
        if empty is not None:
            config.set_timing_cache(empty, ignore_mismatch=False)
    yield
    measured = config.get_timing_cache()
    if measured is None:
        return
    if path.is_file():  # another build may have added timings in the meantime
        other = config.create_timing_cache(path.read_bytes())
        if other is not None:
            measured.combine(other, ignore_mismatch=False)
    write_bytes_atomic(path, memoryview(measured.serialize()))
