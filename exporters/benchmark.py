"""Latency that can be believed on a machine that is not quiet.

1. One process per (round, model): two sessions in one process disturb each other through their spinning threads.
2. Rounds are interleaved and each begins with another model, so that a slow minute or a warm processor meets all of
   them alike.
3. Everything reported is a median; a speedup is the median of the ratios within each round, which stays put when the
   milliseconds do not.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from exporters.tensorrt.driver import require_driver
from qdq.errors import CheckpointError, ConfigError, MissingPackageError, QDQError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

__all__ = ["BenchmarkResult", "Candidate", "Machine", "Runtime", "Shape", "Timing", "benchmark"]

Runtime = Literal["onnxruntime", "openvino", "tensorrt"]

INT8_INSTRUCTIONS = ("avx2", "avx512_vnni", "avx_vnni", "amx_int8")  # as /proc/cpuinfo spells them


@dataclass(frozen=True)
class Candidate:
    """A model to time, under the name it is reported with."""

    name: str
    path: Path
    runtime: Runtime = "onnxruntime"

    @property
    def problem(self) -> str | None:
        """Why there is nothing to time; None where there is."""
        if self.path.is_file():
            return None
        where = "" if self.name == str(self.path) else f": {self.path}"
        return f"{self.name}: no such model file{where}"


@dataclass(frozen=True)
class Shape:
    """A batch of ``batch_size`` rows of ``seq_len`` tokens, none of them padding."""

    batch_size: int
    seq_len: int

    def __str__(self) -> str:
        return f"{self.batch_size} x {self.seq_len}"


@dataclass(frozen=True)
class Timing:
    """Seconds of one run of one model at one shape.

    ``median_s``, ``p10_s``, ``p90_s`` and ``p99_s`` are taken in each round, and of each the median over the rounds is
    kept: a round with more runs does not weigh more. ``runs`` counts all runs of all ``rounds``.
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
        """The same, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Machine:
    """What was measured on: the processor, its logical cores, and its int8 instruction sets (x86 on Linux)."""

    cpu: str
    logical_cores: int
    int8_instructions: tuple[str, ...]

    @classmethod
    def this(cls, cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
        """The machine we run on."""
        fields: dict[str, str] = {}
        if cpuinfo.exists():
            for line in cpuinfo.read_text().splitlines():
                key, _, value = line.partition(":")
                fields.setdefault(key.strip(), value.strip())  # the first core stands for all
        flags = set(fields.get("flags", "").split())
        return cls(
            cpu=fields.get("model name") or platform.processor() or platform.machine(),
            logical_cores=os.cpu_count() or 1,
            int8_instructions=tuple(name for name in INT8_INSTRUCTIONS if name in flags),
        )


@dataclass(frozen=True)
class BenchmarkResult:
    """What :func:`benchmark` measured.

    ``round_medians_s`` holds, per (name, shape), the median of each round in order; ``peak_rss_bytes`` per name the
    largest memory of a process that did nothing but run this model at all shapes.
    """

    timings: tuple[Timing, ...]
    threads: int
    machine: Machine
    round_medians_s: Mapping[tuple[str, Shape], tuple[float, ...]]
    peak_rss_bytes: Mapping[str, int]

    def speedup(self, name: str, baseline: str, shape: Shape) -> float:
        """How many times faster ``name`` is than ``baseline``: the median over rounds of that round's ratio.

        Raises:
            ConfigError: One of them was not measured.
        """
        if absent := [n for n in (name, baseline) if (n, shape) not in self.round_medians_s]:
            measured = ", ".join(f"{n} at {s}" for n, s in self.round_medians_s)
            raise ConfigError(f"{' and '.join(absent)} at {shape} was not measured; measured were {measured}")
        pairs = zip(self.round_medians_s[baseline, shape], self.round_medians_s[name, shape], strict=True)
        return statistics.median(slow / fast for slow, fast in pairs)

    def to_dict(self) -> dict[str, Any]:
        """The same, ready for JSON; each timing has its round medians and its model's peak memory with it."""
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
    """Time every candidate at every shape; see the module for how.

    Args:
        candidates: The models; their names must differ.
        shapes: The shapes, each measured in every process.
        threads: Threads of each session.
        rounds: How often each model gets a fresh process.
        min_seconds: Time spent on each shape in each round, after the warm-up.
        warmup: Runs of each shape that are not counted.
        progress: Called before each process with the number done, the total and the candidate's name, and once at the
            end with an empty name.

    Raises:
        ConfigError: The request makes no sense; all reasons are listed.
        CheckpointError: A model file does not exist; all of them are listed.
        MissingPackageError: A candidate needs a runtime that is not installed.
        QDQError: A worker failed; its last line is in the message.
    """
    _check(candidates, shapes, threads=threads, rounds=rounds, min_seconds=min_seconds, warmup=warmup)
    seconds: dict[tuple[str, Shape], list[list[float]]] = {(c.name, s): [] for c in candidates for s in shapes}
    peak_rss_bytes = {c.name: 0 for c in candidates}

    schedule = _schedule(candidates, rounds)
    for done, candidate in enumerate(schedule):
        if progress is not None:
            progress(done, len(schedule), candidate.name)
        answer = _run_worker(
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
        for shape, times in zip(shapes, answer["seconds"], strict=True):
            seconds[candidate.name, shape].append(times)
        peak_rss_bytes[candidate.name] = max(peak_rss_bytes[candidate.name], answer["peak_rss_bytes"])
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
    """Who runs when: every candidate once a round, each round beginning with the next one."""
    starts = [r % len(candidates) for r in range(rounds)]
    return [candidate for start in starts for candidate in [*candidates[start:], *candidates[:start]]]


def _run_worker(candidate: Candidate, request: dict[str, Any]) -> dict[str, Any]:
    """One request answered in a fresh process, which is killed when we are interrupted.

    The environment is inherited. The worker imports from where we do, and not from the current directory (``-P``),
    where any ``onnx.py`` would be in its way.
    """
    process = subprocess.run(
        [sys.executable, "-P", "-m", "exporters._benchmark_worker"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if process.returncode != 0:
        lines = process.stderr.strip().splitlines() or [f"the process ended with status {process.returncode}"]
        raise QDQError(f"timing {candidate.name} ({candidate.path}) failed: {lines[-1]}")
    answer: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return answer


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
