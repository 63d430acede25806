"""What a runtime really does with a file: which nodes it runs, for how long, and which of them in int8."""

from __future__ import annotations

import json
import math
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters._benchmark_worker import make_inputs
from exporters.runners import OnnxRuntimeRunner, OpenVINORunner
from qdq.errors import ConfigError, MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["PRODUCTS", "NodeTime", "Profile", "profile"]

_INTEGER_PRODUCTS = frozenset(
    {"MatMulIntegerToFloat", "MatMulInteger", "DynamicQuantizeMatMul", "QLinearMatMul", "QGemm"}
)
PRODUCTS = _INTEGER_PRODUCTS | {
    *("MatMul", "Gemm", "FusedMatMul", "FusedGemm", "MatMulNBits"),
    "FullyConnected",  # OpenVINO's name
}
"""Operators that multiply matrices, in the words of both runtimes."""

_INTEGERS = frozenset({"int8", "uint8", "i8", "u8"})


@dataclass(frozen=True)
class NodeTime:
    """One node as the runtime runs it.

    Args:
        name: that the runtime gives it: of the file's node, where it did not make a new one.
        operator: its type.
        in_int8: whether it computes with integers of 8 bits.
        seconds: mean of a run.
        macs: multiplications of a matrix product, 0 for anything else.
    """

    name: str
    operator: str
    in_int8: bool
    seconds: float
    macs: int


@dataclass(frozen=True)
class Profile:
    """The report of :func:`profile`.

    Args:
        runtime: that ran the file.
        batch_size: of the input.
        seq_len: of the input.
        runs: that were measured.
        nodes: in the order of the first run.
        macs: of the whole file; more than those of the nodes where the runtime fused products into other kernels.
    """

    runtime: str
    batch_size: int
    seq_len: int
    runs: int
    nodes: tuple[NodeTime, ...]
    macs: int

    @property
    def seconds(self) -> float:
        """Of all nodes together."""
        return sum(node.seconds for node in self.nodes)

    @property
    def share_of_time(self) -> float:
        """Of the time that nodes in int8 take, 0 to 1."""
        return sum(node.seconds for node in self.nodes if node.in_int8) / self.seconds if self.seconds else 0.0

    @property
    def share_of_macs(self) -> float:
        """Of the multiplications that are done in int8, 0 to 1."""
        return sum(node.macs for node in self.nodes if node.in_int8) / self.macs if self.macs else 0.0

    def by_operator(self) -> list[tuple[str, bool, int, float]]:
        """Operator, whether in int8, number of nodes, seconds; the longest first."""
        sums: defaultdict[tuple[str, bool], list[float]] = defaultdict(lambda: [0, 0.0])
        for node in self.nodes:
            entry = sums[node.operator, node.in_int8]
            entry[0] += 1
            entry[1] += node.seconds
        rows = [(name, in_int8, int(count), seconds) for (name, in_int8), (count, seconds) in sums.items()]
        return sorted(rows, key=lambda row: -row[3])

    def products_in_float(self) -> list[NodeTime]:
        """Matrix products that the runtime computes in float."""
        return [node for node in self.nodes if node.operator in PRODUCTS and not node.in_int8]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        shares = {"share_of_time_in_int8": self.share_of_time, "share_of_macs_in_int8": self.share_of_macs}
        return {**asdict(self), "seconds": self.seconds, **shares}


def profile(
    path: Path,
    *,
    runtime: str = "onnxruntime",
    batch_size: int = 8,
    seq_len: int = 128,
    threads: int | None = None,
    runs: int = 5,
    warmup: int = 2,
) -> Profile:
    """Run a file and take down what the runtime says about each of its nodes.

    Args:
        path: of an ONNX file.
        runtime: ``onnxruntime`` or ``openvino``.
        batch_size: rows of the input, which has no padding.
        seq_len: tokens of a row.
        threads: of the runtime; None leaves the choice to it.
        runs: that are measured.
        warmup: runs before, which are not.

    Raises:
        ConfigError: for a runtime that does not exist, or less than one run.
        CheckpointError: for a file that cannot be read.
        ExportError: for a file that cannot be run, or not at this shape.
        MissingPackageError: for a runtime that is not installed.
    """
    known = {"onnxruntime": _onnxruntime, "openvino": _openvino}
    if runtime not in known:
        raise ConfigError(f"no runtime {runtime!r}: it must be one of {', '.join(known)}")
    if min(runs, batch_size, seq_len) < 1 or warmup < 0:
        raise ConfigError("runs, batch size and length must be at least 1")
    nodes, macs = known[runtime](path, (batch_size, seq_len), threads, runs, warmup)
    return Profile(runtime, batch_size, seq_len, runs, tuple(nodes), macs)


_Found = tuple[list[NodeTime], int]


def _onnxruntime(path: Path, shape: tuple[int, int], threads: int | None, runs: int, warmup: int) -> _Found:
    with tempfile.TemporaryDirectory() as folder:
        runner = OnnxRuntimeRunner(path, threads=threads, profile_to=Path(folder) / "profile")
        inputs = make_inputs(runner.inputs, *shape)
        for _ in range(warmup + runs):
            runner(inputs)
        events = json.loads(Path(runner.end_profiling()).read_text(encoding="utf-8"))
    nodes = _of_events(events, runs)
    return nodes, sum(node.macs for node in nodes)


def _of_events(events: Sequence[Mapping[str, Any]], runs: int) -> list[NodeTime]:
    """ONNX Runtime's own record: an event for each node and run, microseconds; the last ``runs`` of each count."""
    kernels: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
            kernels[str(event["name"]).removesuffix("_kernel_time")].append(event)
    found = []
    for name, all_of_it in kernels.items():
        counted = all_of_it[-runs:]
        about = counted[-1]["args"]
        operator = str(about["op_name"])
        inputs, outputs = (_types_and_shapes(about.get(f"{side}_type_shape", [])) for side in ("input", "output"))
        seconds = sum(event["dur"] for event in counted) / len(counted) / 1e6
        is_product = operator in PRODUCTS
        # Weights that were packed for a kernel are no inputs any more: of a product its name tells.
        moved = any(kind in _INTEGERS for kind, _ in inputs[:2])
        in_int8 = operator in _INTEGER_PRODUCTS if is_product else moved
        macs = _macs(inputs[0][1], outputs[0][1]) if is_product and inputs and outputs else 0
        found.append(NodeTime(name, operator, in_int8, seconds, macs))
    return found


def _types_and_shapes(entries: Sequence[Mapping[str, Sequence[int]]]) -> list[tuple[str, tuple[int, ...]]]:
    return [(kind, tuple(shape)) for entry in entries for kind, shape in entry.items()]


def _macs(left: tuple[int, ...], result: tuple[int, ...]) -> int:
    """Of a product of ``(..., n, k)`` that gives ``(..., n, m)``."""
    return math.prod(result) * (left[-1] if left else 1)


def _openvino(path: Path, shape: tuple[int, int], threads: int | None, runs: int, warmup: int) -> _Found:
    try:
        import openvino as ov
    except ModuleNotFoundError as error:
        raise MissingPackageError("openvino", extra="openvino", purpose="profiling a model in OpenVINO") from error
    runner = OpenVINORunner(path, threads=threads)  # reads, and says clearly what is wrong
    inputs: dict[str, NDArray[Any]] = make_inputs(runner.inputs, *shape)
    core = ov.Core()
    model = core.read_model(str(path))
    model.reshape({name: array.shape for name, array in inputs.items()})  # so that all shapes are known
    macs = sum(
        _macs(tuple(op.input(0).get_shape()), tuple(op.output(0).get_shape()))
        for op in model.get_ordered_ops()
        if op.get_type_name() == "MatMul"
    )
    config: dict[str, Any] = {"PERF_COUNT": "YES", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    compiled = core.compile_model(model, "CPU", config)
    request = compiled.create_infer_request()
    seconds: defaultdict[str, float] = defaultdict(float)
    for run in range(warmup + runs):
        request.infer(inputs)
        if run >= warmup:
            for info in request.get_profiling_info():
                seconds[info.node_name] += info.real_time.total_seconds() / runs
    found = []
    for op in compiled.get_runtime_model().get_ordered_ops():
        name, about = op.get_friendly_name(), op.get_rt_info()
        operator = about["layerType"].astype(str)
        if operator in ("Input", "Output", "Const", "Parameter", "Result") or name not in seconds:
            continue
        precision = about["runtimePrecision"].astype(str).lower()
        own = 0
        if operator in PRODUCTS and op.get_input_size():
            own = _macs(*(tuple(port.get_shape()) for port in (op.input(0), op.output(0))))
        found.append(NodeTime(name, operator, precision in _INTEGERS, seconds[name], own))
    return found, macs
