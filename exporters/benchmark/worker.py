"""The process that times one model: one session, every shape. A request arrives on stdin, the response on stdout.

    {"path", "runtime", "threads", "min_seconds", "warmup", "shapes": [{"batch_size", "seq_len"}]}
    -> {"seconds": [[float]], "peak_rss_bytes": int}        one list of times per shape

torch is imported for engines only, because its threads and its memory would be measured as well.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.benchmark.inputs import make_inputs
from exporters.runners import OnnxRuntimeRunner, OpenVINORunner
from qdq.errors import QDQError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from exporters.runners import Runner

__all__ = ["main", "measure"]


def measure(runner: Runner, inputs: dict[str, NDArray[Any]], *, warmup: int, min_seconds: float) -> list[float]:
    """Run repeatedly and return the seconds of each run, in order.

    Args:
        runner: The model.
        inputs: Its inputs.
        warmup: Number of runs before, which are not counted.
        min_seconds: Time to measure for. There is at least one run.
    """
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
    """Return the peak resident memory of this process alone."""
    # A child inherits ru_maxrss from its parent on Linux, and the parent may have held a torch model. VmHWM begins
    # anew with exec.
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _runner(path: Path, runtime: str, threads: int) -> Any:
    if runtime == "tensorrt":  # needs torch for the memory on the GPU
        from exporters.tensorrt.runner import TensorRTRunner

        return TensorRTRunner(path, cuda_graphs=True)
    runner_class = {"onnxruntime": OnnxRuntimeRunner, "openvino": OpenVINORunner}[runtime]
    return runner_class(path, threads=threads)


def _respond(request: dict[str, Any]) -> dict[str, Any]:
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
    """Respond to the request on stdin. Print an error as one line on stderr."""
    try:
        print(json.dumps(_respond(json.load(sys.stdin))))
    except QDQError as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
