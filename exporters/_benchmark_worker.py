"""One process of a benchmark: one model, one session, every shape. JSON in on stdin, JSON out on stdout.

    {"path", "runtime", "threads", "min_seconds", "warmup", "shapes": [{"batch_size", "seq_len"}]}
    -> {"seconds": [[float]], "peak_rss_bytes": int}        one list of times per shape

torch is not imported here, except for engines: its threads and its memory would be measured along.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.runners import OnnxRuntimeRunner, OpenVINORunner
from qdq.errors import ExportError, QDQError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from exporters.runners import Runner, TensorInfo

__all__ = ["make_inputs", "measure"]

VOCABULARY = 32  # ids that real vocabularies have, and toy ones too
CHOICES = 2  # length of a free dimension that is neither batch nor sequence, as in (batch, choices, seq)


def make_inputs(infos: Sequence[TensorInfo], batch_size: int, seq_len: int) -> dict[str, NDArray[Any]]:
    """Inputs as the model declares them: random ids, every token attended to, one segment.

    A free dimension is told by its name, and where that says nothing by its position: the first is the batch, the last
    free one the sequence.

    Raises:
        ExportError: A fixed dimension makes the model unable to run at this shape.
    """
    inputs = {info.name: _make_input(info, batch_size, seq_len) for info in infos}
    for info in infos:
        if info.dtype.kind not in "iu" or "position" in info.name.lower():  # positions may be one row for all
            continue
        if "past_seq + seq" in info.shape:
            continue
        shape = inputs[info.name].shape
        if len(shape) > 1 and (shape[0], shape[-1]) != (batch_size, seq_len):
            raise ExportError(
                f"the input {info.name} has the fixed shape {shape}, it cannot run {batch_size} x {seq_len}"
            )
    return inputs


def _make_input(info: TensorInfo, batch_size: int, seq_len: int) -> NDArray[Any]:
    shape = _resolve(info.shape, batch_size, seq_len)
    name = info.name.lower()
    if "mask" in name or info.dtype.kind == "b":
        return np.ones(shape, dtype=info.dtype)
    if "type" in name or "segment" in name:
        return np.zeros(shape, dtype=info.dtype)
    if "position" in name:
        return np.broadcast_to(np.arange(shape[-1], dtype=info.dtype), shape).copy()
    random = np.random.default_rng(0)
    values = random.normal(size=shape) if info.dtype.kind == "f" else random.integers(VOCABULARY, size=shape)
    return values.astype(info.dtype)


def _resolve(shape: Sequence[int | str | None], batch_size: int, seq_len: int) -> tuple[int, ...]:
    if "past_seq + seq" in shape:  # the mask over a cache, which is as long as the new text
        return tuple(2 * seq_len if size == "past_seq + seq" else batch_size for size in shape)
    free = [axis for axis, size in enumerate(shape) if not isinstance(size, int)]

    def resolve(axis: int, size: int | str | None) -> int:
        if isinstance(size, int):
            return size
        if size is not None and "batch" in size.lower():
            return batch_size
        if size is not None and ("seq" in size.lower() or "length" in size.lower()):
            return seq_len
        if axis == 0:
            return batch_size
        return seq_len if axis == free[-1] else CHOICES

    return tuple(resolve(axis, size) for axis, size in enumerate(shape))


def measure(runner: Runner, inputs: dict[str, NDArray[Any]], *, warmup: int, min_seconds: float) -> list[float]:
    """Seconds of each run, in order: after ``warmup`` runs that are not counted, until ``min_seconds`` are full."""
    for _ in range(warmup):
        runner(inputs)
    seconds: list[float] = []
    start = now = time.perf_counter()
    while not seconds or now - start < min_seconds:
        before = now
        runner(inputs)
        now = time.perf_counter()
        seconds.append(now - before)
    return seconds


def _peak_rss_bytes() -> int:
    """Peak resident memory of this process alone.

    Linux hands the parent's peak down to ``ru_maxrss`` of a child (it counts the memory image before exec), and the
    parent may well have held a torch model; VmHWM is of this image only.
    """
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _runner(path: Path, runtime: str, threads: int) -> Any:
    if runtime == "tensorrt":  # the one that needs torch, for memory on the GPU
        from exporters.tensorrt.runner import TensorRTRunner

        return TensorRTRunner(path, cuda_graphs=True)
    runner_class = {"onnxruntime": OnnxRuntimeRunner, "openvino": OpenVINORunner}[runtime]
    return runner_class(path, threads=threads)


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    runner = _runner(Path(request["path"]), request["runtime"], request["threads"])
    seconds = [
        measure(
            runner,
            make_inputs(runner.inputs, shape["batch_size"], shape["seq_len"]),
            warmup=request["warmup"],
            min_seconds=request["min_seconds"],
        )
        for shape in request["shapes"]
    ]
    return {"seconds": seconds, "peak_rss_bytes": _peak_rss_bytes()}


def main() -> int:
    """Answer the request on stdin; a mistake is one line on stderr."""
    try:
        print(json.dumps(_answer(json.load(sys.stdin))))
    except QDQError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
