"""Time models in fresh processes and take medians; see the package for why."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from exporters.benchmark.machine import Machine
from exporters.tensorrt.nvidia_driver import require_driver
from qdq.errors import CheckpointError, ConfigError, MissingPackageError, QDQError, describe_problems
from qdq.storage import is_pointer

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

__all__ = ["BenchmarkResult", "Candidate", "Runtime", "Shape", "Timing", "benchmark"]

Runtime = Literal["onnxruntime", "openvino", "tensorrt"]


@dataclass(frozen=True)
class Candidate:
    """A model to time.

    Args:
        name: Name that the model is reported with.
        path: The model file, or the engine.
        runtime: The runtime that runs it.
    """

    name: str
    path: Path
    runtime: Runtime = "onnxruntime"

    @property
    def problem(self) -> str | None:
        """Why the model cannot be timed; None if it can."""
        if is_pointer(self.path):
            return f"{self.path}: is a Git LFS pointer, not the file itself: fetch it with `git lfs pull`"
        if self.path.is_file():
            return None
        where = "" if self.name == str(self.path) else f": {self.path}"
        return f"{self.name}: no such model file{where}"


@dataclass(frozen=True)
class Shape:
    """The shape of a batch without padding.

    Args:
        batch_size: Number of rows.
        seq_len: Number of tokens of each row.
    """

    batch_size: int
    seq_len: int

    def __str__(self) -> str:
        return f"{self.batch_size} x {self.seq_len}"


@dataclass(frozen=True)
class Timing:
    """Hold how long one run of one model takes at one shape.

    Quantiles are taken in each round, and the median over the rounds is kept. A round with more runs has no more
    weight.

    Args:
        name: Name of the model.
        shape: The shape.
        median_s: Median time in seconds.
        p10_s: Time that 10% of the runs stay below, in seconds.
        p90_s: Time that 90% of the runs stay below, in seconds.
        p99_s: Time that 99% of the runs stay below, in seconds.
        runs: Number of runs in all rounds.
        rounds: Number of rounds.
    """

    name: str
    shape: Shape
    median_s: float
    p10_s: float
    p90_s: float
    p99_s: float
    runs: int
    rounds: int

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class BenchmarkResult:
    """The timings that :func:`benchmark` measured.

    Args:
        timings: One for each model and shape.
        threads: Threads of each session.
        machine: The machine that ran the benchmark.
        round_medians_s: Median of each round in seconds, in order, by name and shape.
        peak_rss_bytes: Largest memory of a process that ran only this model, at all shapes, by name.
    """

    timings: tuple[Timing, ...]
    threads: int
    machine: Machine
    round_medians_s: Mapping[tuple[str, Shape], tuple[float, ...]]
    peak_rss_bytes: Mapping[str, int]

    def speedup(self, name: str, baseline: str, shape: Shape) -> float:
        """Return how many times faster ``name`` is than ``baseline``: the median of the ratios of the rounds.

        Raises:
            ConfigError: If one of them was not measured at this shape.
        """
        if absent := [n for n in (name, baseline) if (n, shape) not in self.round_medians_s]:
            measured = ", ".join(f"{n} at {s}" for n, s in self.round_medians_s)
            raise ConfigError(f"{' and '.join(absent)} at {shape} was not measured; measured were {measured}")
        # Both numbers of a pair are close in time, so a slow minute cancels out in their ratio.
        pairs = zip(self.round_medians_s[baseline, shape], self.round_medians_s[name, shape], strict=True)
        return statistics.median(slow / fast for slow, fast in pairs)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; each timing includes its round medians and the peak memory of its model."""
        return {
            "threads": self.threads,
            "machine": {**asdict(self.machine), "int8_instructions": list(self.machine.int8_instructions)},
            "timings": [
                {
                    **timing.to_dict(),
                    "round_medians_s": list(self.round_medians_s[timing.name, timing.shape]),
                    "peak_rss_bytes": self.peak_rss_bytes[timing.name],
                }
                for timing in self.timings
            ],
        }


def benchmark(
    candidates: Sequence[Candidate],
    shapes: Sequence[Shape],
    *,
    threads: int = 2,
    rounds: int = 5,
    min_seconds: float = 0.5,
    warmup: int = 3,
    progress: Callable[[int, int, str], None] | None = None,
) -> BenchmarkResult:
    """Time every candidate at every shape; see :mod:`exporters.benchmark` for how.

    Args:
        candidates: The models. Their names must differ.
        shapes: The shapes. Each process measures all of them.
        threads: Threads of each session.
        rounds: Number of rounds. Each model gets a fresh process in each round.
        min_seconds: Seconds to spend on each shape in each round, after the warm-up.
        warmup: Number of runs of each shape that are not counted.
        progress: Called before each process with the number done, the total and the name of the candidate, and once at
            the end with an empty name.

    Raises:
        ConfigError: If an argument is invalid. All problems are listed.
        CheckpointError: If a model file does not exist. All of them are listed.
        MissingPackageError: If a candidate needs a runtime that is not installed.
        QDQError: If a process failed. The message ends with the last line that it printed.
    """
    _check(candidates, shapes, threads=threads, rounds=rounds, min_seconds=min_seconds, warmup=warmup)
    seconds: dict[tuple[str, Shape], list[list[float]]] = {(c.name, s): [] for c in candidates for s in shapes}
    peak_rss_bytes = {c.name: 0 for c in candidates}

    schedule = _schedule(candidates, rounds)
    for done, candidate in enumerate(schedule):
        if progress is not None:
            progress(done, len(schedule), candidate.name)
        response = _run_worker(
            candidate,
            {
                "path": str(candidate.path),
                "runtime": candidate.runtime,
                "threads": threads,
                "min_seconds": min_seconds,
                "warmup": warmup,
                "shapes": [asdict(shape) for shape in shapes],
            },
        )
        for shape, times in zip(shapes, response["seconds"], strict=True):
            seconds[candidate.name, shape].append(times)
        peak_rss_bytes[candidate.name] = max(peak_rss_bytes[candidate.name], response["peak_rss_bytes"])
    if progress is not None:
        progress(len(schedule), len(schedule), "")

    return BenchmarkResult(
        timings=tuple(_timing(name, shape, by_round) for (name, shape), by_round in seconds.items()),
        threads=threads,
        machine=Machine.this(),
        round_medians_s={key: _round_medians(by_round) for key, by_round in seconds.items()},
        peak_rss_bytes=peak_rss_bytes,
    )


def _check(
    candidates: Sequence[Candidate],
    shapes: Sequence[Shape],
    *,
    threads: int,
    rounds: int,
    min_seconds: float,
    warmup: int,
) -> None:
    names = [candidate.name for candidate in candidates]
    rules = [
        (bool(candidates), "there is no model to time"),
        (bool(shapes), "there is no shape to time"),
        (len(set(names)) == len(names), f"the names must differ: {', '.join(names)}"),
        (len(set(shapes)) == len(shapes), f"the shapes must differ: {', '.join(map(str, shapes))}"),
        *((min(s.batch_size, s.seq_len) >= 1, f"the shape {s} must be at least 1 x 1") for s in shapes),
        *(
            (c.runtime in get_args(Runtime), f"{c.name} has the unknown runtime {c.runtime!r}: {get_args(Runtime)}")
            for c in candidates
        ),
        (threads >= 1, f"threads = {threads}, must be at least 1"),
        (rounds >= 1, f"rounds = {rounds}, must be at least 1"),
        (min_seconds >= 0, f"min_seconds = {min_seconds}, must not be negative"),
        (warmup >= 0, f"warmup = {warmup}, must not be negative"),
    ]
    if problems := [problem for holds, problem in rules if not holds]:
        raise ConfigError(describe_problems("benchmark", problems))
    if problems := [candidate.problem for candidate in candidates if candidate.problem is not None]:
        raise CheckpointError(describe_problems("benchmark", problems))
    if any(c.runtime == "openvino" for c in candidates) and find_spec("openvino") is None:
        raise MissingPackageError("openvino", extra="openvino", purpose="timing a model in OpenVINO")
    if any(c.runtime == "tensorrt" for c in candidates):
        require_driver("timing an engine")


def _schedule(candidates: Sequence[Candidate], rounds: int) -> list[Candidate]:
    """Return the order of the processes: every candidate once per round, each round beginning with the next one."""
    starts = [r % len(candidates) for r in range(rounds)]
    return [candidate for start in starts for candidate in [*candidates[start:], *candidates[:start]]]


def _run_worker(candidate: Candidate, request: dict[str, Any]) -> dict[str, Any]:
    """Send a request to a fresh process and return its response. The process dies with this one when interrupted."""
    # -P keeps the current directory off the import path: a file onnx.py there would shadow the package.
    process = subprocess.run(
        [sys.executable, "-P", "-m", "exporters.benchmark.worker"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if process.returncode != 0:
        lines = process.stderr.strip().splitlines() or [f"the process ended with status {process.returncode}"]
        raise QDQError(f"timing {candidate.name} ({candidate.path}) failed: {lines[-1]}")
    response: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return response


def _round_medians(by_round: Sequence[Sequence[float]]) -> tuple[float, ...]:
    return tuple(map(statistics.median, by_round))


def _timing(name: str, shape: Shape, by_round: Sequence[Sequence[float]]) -> Timing:
    p10, p90, p99 = (statistics.median(float(np.quantile(times, q)) for times in by_round) for q in (0.1, 0.9, 0.99))
    return Timing(
        name=name,
        shape=shape,
        median_s=statistics.median(_round_medians(by_round)),
        p10_s=p10,
        p90_s=p90,
        p99_s=p99,
        runs=sum(map(len, by_round)),
        rounds=len(by_round),
    )
