"""Measure latency in a way that can be trusted on a machine that is not quiet.

1. Each pair of round and model runs in a process of its own. Two sessions in one process disturb each other through
   their spinning threads.
2. Rounds are interleaved and each begins with another model, so that a slow minute or a warm processor affects all
   models alike.
3. Everything that is reported is a median. A speed-up is the median of the ratios within each round, which is stable
   when the milliseconds are not.
"""

from __future__ import annotations

from exporters.benchmark.latency import BenchmarkResult, Candidate, Runtime, Shape, Timing, benchmark
from exporters.benchmark.machine import Machine
from exporters.benchmark.shapes import AcceptedShape, accepted_shape, chosen_shapes

__all__ = [
    "AcceptedShape",
    "BenchmarkResult",
    "Candidate",
    "Machine",
    "Runtime",
    "Shape",
    "Timing",
    "accepted_shape",
    "benchmark",
    "chosen_shapes",
]
