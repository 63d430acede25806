"""Find out what a runtime does with a file: which nodes it runs, for how long, and which of them in int8."""

from __future__ import annotations

import json
import math
import tempfile
from collections import defaultdict
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.benchmark.inputs import make_inputs
from exporters.benchmark.shapes import accepted_shape, chosen_shapes
from exporters.onnx.product_operators import (
    ATTENTION,
    ATTENTION_WITH_WEIGHTS,
    CONVOLUTIONS,
    INTEGER_OPERATORS,
    INTEGER_PRODUCTS,
    PRODUCTS,
)
from exporters.runners import OnnxRuntimeRunner, OpenVINORunner
from qdq.errors import ConfigError, MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["NodeTime", "Profile", "profile"]

_BATCH_SIZE = 8
_CONTROL_FLOW = frozenset({"If", "Loop", "Scan"})
_INTEGERS = frozenset({"int8", "uint8", "i8", "u8"})


@dataclass(frozen=True)
class NodeTime:
    """Describe one node as the runtime runs it.

    Args:
        name: Name that the runtime gives the node: that of the node in the file, unless the runtime made a new one.
        operator: Type of the operator.
        in_int8: Whether it computes with 8-bit integers.
        seconds: Mean time per run.
        macs: Multiply-accumulate operations of a matrix product, 0 for anything else.
    """

    name: str
    operator: str
    in_int8: bool
    seconds: float
    macs: int


@dataclass(frozen=True)
class Profile:
    """Hold the result of :func:`profile`.

    Args:
        runtime: The runtime that ran the file.
        batch_size: Rows of the input.
        seq_len: Tokens of a row.
        runs: Number of runs that were measured.
        nodes: The nodes, in the order of the first run.
        macs: Multiply-accumulate operations of the whole file. They exceed the sum over the nodes if the runtime fused
            products into other kernels.
    """

    runtime: str
    batch_size: int
    seq_len: int
    runs: int
    nodes: tuple[NodeTime, ...]
    macs: int

    @property
    def seconds(self) -> float:
        """Time of all nodes together."""
        return sum(node.seconds for node in self.nodes)

    @property
    def share_of_time(self) -> float:
        """Share of the time that is spent in int8 nodes, 0 to 1."""
        return sum(node.seconds for node in self.nodes if node.in_int8) / self.seconds if self.seconds else 0.0

    @property
    def share_of_macs(self) -> float:
        """Share of the multiply-accumulate operations that are done in int8, 0 to 1."""
        return sum(node.macs for node in self.nodes if node.in_int8) / self.macs if self.macs else 0.0

    def by_operator(self) -> list[tuple[str, bool, int, float]]:
        """Return operator, whether it runs in int8, number of nodes and seconds; the slowest first."""
        sums: defaultdict[tuple[str, bool], list[float]] = defaultdict(lambda: [0, 0.0])
        for node in self.nodes:
            entry = sums[node.operator, node.in_int8]
            entry[0] += 1
            entry[1] += node.seconds
        rows = [(name, in_int8, int(count), seconds) for (name, in_int8), (count, seconds) in sums.items()]
        return sorted(rows, key=lambda row: -row[3])

    def products_in_float(self) -> list[NodeTime]:
        """Return the matrix products that the runtime computes in float."""
        return [node for node in self.nodes if node.operator in PRODUCTS and not node.in_int8]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        shares = {"share_of_time_in_int8": self.share_of_time, "share_of_macs_in_int8": self.share_of_macs}
        return {**asdict(self), "seconds": self.seconds, **shares}


def profile(
    path: Path,
    *,
    runtime: str = "onnxruntime",
    batch_size: int | None = None,
    seq_len: int | None = None,
    threads: int | None = None,
    runs: int = 5,
    warmup: int = 2,
) -> Profile:
    """Run a file and collect what the runtime reports about each node.

    Args:
        path: An ONNX file.
        runtime: ``onnxruntime`` or ``openvino``.
        batch_size: Rows of the input, which has no padding; None takes what the file is fixed to, or 8.
        seq_len: Tokens of a row; None takes what the file is fixed to, or 128, or fewer if the model has fewer
            positions.
        threads: Threads of the runtime; None leaves the choice to it.
        runs: Number of runs to measure.
        warmup: Number of runs before, which are not measured.

    Raises:
        ConfigError: If the runtime is unknown, a number is too small, or the file does not take this shape.
        CheckpointError: If the file cannot be read.
        ExportError: If the file cannot be run, or not at this shape.
        MissingPackageError: If the runtime is not installed.
    """
    known = {"onnxruntime": _onnxruntime, "openvino": _openvino}
    if runtime not in known:
        raise ConfigError(f"no runtime {runtime!r}: it must be one of {', '.join(known)}")
    if min([runs, *(size for size in (batch_size, seq_len) if size is not None)]) < 1 or warmup < 0:
        raise ConfigError("runs, batch size and length must be at least 1")
    (shape,) = chosen_shapes(
        {str(path): accepted_shape(path)},
        None if batch_size is None else [batch_size],
        None if seq_len is None else [seq_len],
        default_batch_sizes=[_BATCH_SIZE],
        options=("--shape: rows", "--shape: tokens"),
    )
    nodes, macs = known[runtime](path, (shape.batch_size, shape.seq_len), threads, runs, warmup)
    return Profile(runtime, shape.batch_size, shape.seq_len, runs, tuple(nodes), macs)


_NodesAndMacs = tuple[list[NodeTime], int]
_Shape = tuple[int, ...]


def _onnxruntime(path: Path, shape: tuple[int, int], threads: int | None, runs: int, warmup: int) -> _NodesAndMacs:
    with tempfile.TemporaryDirectory() as folder:
        runner = OnnxRuntimeRunner(path, threads=threads, profile_to=Path(folder) / "profile")
        inputs = make_inputs(runner.inputs, *shape)
        for _ in range(warmup + runs):
            runner(inputs)
        events = json.loads(Path(runner.end_profiling()).read_text(encoding="utf-8"))
    return _of_events(events, runs, warmup)


def _of_events(events: Sequence[Mapping[str, Any]], runs: int, warmup: int) -> _NodesAndMacs:
    """Read the profile that ONNX Runtime wrote: an event for each node and run, in microseconds.

    1. The last events of each node count, as many as belong to ``runs``; those before belong to the warm-up.
    2. A node within a Loop has several events for each run, one in a branch that is not taken has none.
    3. The time of If, Loop and Scan is that of the nodes within them, so they themselves are left out.
    """
    kernels: defaultdict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name", "")).endswith("_kernel_time"):
            kernels[str(event["name"]).removesuffix("_kernel_time")].append(event)
    found, all_macs = [], 0
    for name, all_events in kernels.items():
        counted = all_events[-max(1, round(len(all_events) * runs / (warmup + runs))) :]
        about = counted[-1]["args"]
        operator = str(about["op_name"])
        if operator in _CONTROL_FLOW:
            continue
        inputs, outputs = (_types_and_shapes(about.get(f"{side}_type_shape", [])) for side in ("input", "output"))
        seconds = sum(event["dur"] for event in counted) / runs / 1e6
        # Weights that were packed for a kernel are no longer inputs, so the name of a product decides, not its types.
        reads_integers = any(kind in _INTEGERS for kind, _ in inputs[:2])
        in_int8 = operator in INTEGER_OPERATORS if operator in PRODUCTS else reads_integers
        linear, attention = _node_macs(operator, [shape for _, shape in inputs], [shape for _, shape in outputs])
        times = max(1, round(len(counted) / runs))
        # An integer attention computes its linear product in integers, and the two others in float.
        macs = times * (linear if in_int8 else linear + attention)
        all_macs += times * (linear + attention)
        found.append(NodeTime(name, operator, in_int8, seconds, macs))
    return found, all_macs


def _types_and_shapes(entries: Sequence[Mapping[str, Sequence[int]]]) -> list[tuple[str, tuple[int, ...]]]:
    return [(kind, tuple(shape)) for entry in entries for kind, shape in entry.items()]


def _macs(left: tuple[int, ...], result: tuple[int, ...]) -> int:
    """Count the operations of a product of ``(..., n, k)`` that gives ``(..., n, m)``."""
    return math.prod(result) * (left[-1] if left else 1)


def _node_macs(operator: str, inputs: Sequence[_Shape], outputs: Sequence[_Shape]) -> tuple[int, int]:
    """Count the operations of a node with a stored operand, and of the two products of an attention."""
    if operator not in PRODUCTS or not inputs or not outputs:
        return 0, 0
    first, second = inputs[0], inputs[1] if len(inputs) > 1 else ()
    if operator in ATTENTION_WITH_WEIGHTS and len(first) == 3 and len(second) == 2:  # (batch, n, k) and (k, 3 m)
        rows, length, width = first[0], first[1], second[1]
        return math.prod(first) * width, 2 * rows * length * length * (width // 3)
    if operator in ATTENTION or operator in ATTENTION_WITH_WEIGHTS:
        return 0, _attention_macs(first, second)
    if operator in CONVOLUTIONS:
        index = INTEGER_PRODUCTS.get(operator, (0, 1))[1]
        kernel = inputs[index] if index < len(inputs) else ()
        return math.prod(outputs[0]) * math.prod(kernel[1:]), 0
    return (0 if operator == "Einsum" else _macs(first, outputs[0])), 0


def _attention_macs(query: _Shape, key: _Shape) -> int:
    """Count the operations of both products, for a query ``(batch, n, hidden)`` and a key ``(batch, m, hidden)``.

    With heads both have a further axis in front of the last two. Packed, the query has the key and the value in it.
    """
    if len(query) == 5:  # (batch, n, heads, 3, size)
        return 2 * math.prod(query) // 3 * query[1]
    if len(key) < 3:
        return 2 * math.prod(query) // 3 * query[-2] if len(query) == 3 else 0
    return 2 * math.prod(query) * key[-2]


def _openvino(path: Path, shape: tuple[int, int], threads: int | None, runs: int, warmup: int) -> _NodesAndMacs:
    try:
        import openvino as ov
    except ModuleNotFoundError as error:
        raise MissingPackageError("openvino", extra="openvino", purpose="profiling a model in OpenVINO") from error
    runner = OpenVINORunner(path, threads=threads)  # gives a clear error for a file that OpenVINO cannot read
    inputs: dict[str, NDArray[Any]] = make_inputs(runner.inputs, *shape)
    core = ov.Core()
    model = core.read_model(str(path))
    # The operations can be counted only when every shape is fixed.
    model.reshape({name: array.shape for name, array in inputs.items()})
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
        node_macs = 0
        if operator in PRODUCTS and op.get_input_size():
            node_macs = _macs(*(tuple(port.get_shape()) for port in (op.input(0), op.output(0))))
        found.append(NodeTime(name, operator, precision in _INTEGERS, seconds[name], node_macs))
    return found, macs
