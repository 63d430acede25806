"""Measure how latency and memory of several exports grow with batch size and length, as a table and as a plot.

    python tools/cost_growth.py float/ ort/ ov/ [--batch-size 1 2 4 8 16 32] [--seq-len 16 32 64 128 256 512]
        [--rounds 3] [--threads 2] [--json growth.json] [--plot growth.svg]

One text is run at every length, and every batch size at length 128. Each export is timed in the runtime of its target,
each model and round in a process of its own. Memory is the peak of a process that runs only one shape. The plot needs
matplotlib: pip install matplotlib.
"""

from __future__ import annotations

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from exporters.benchmark import BenchmarkResult, Candidate, Shape, benchmark
from qdq.source import MODEL_FILE, read_export

TOKENS = 128  # in a row, while the batch grows


def candidates(folders: list[Path]) -> list[Candidate]:
    """Return each export with the runtime of its target."""
    return [
        Candidate(
            str(folder),
            folder / MODEL_FILE,
            "openvino" if read_export(folder)["target"] == "openvino" else "onnxruntime",
        )
        for folder in folders
    ]


def shapes(batch_sizes: list[int], lengths: list[int]) -> list[Shape]:
    """Return one text at every length, then every batch size at one length."""
    both = [*(Shape(1, length) for length in lengths), *(Shape(size, TOKENS) for size in batch_sizes)]
    return list(dict.fromkeys(both))


def measure(models: list[Candidate], wanted: list[Shape], **options: Any) -> list[dict[str, Any]]:
    """Return a row for each model and shape. Each shape is a benchmark of its own, to measure its memory alone."""
    rows = []
    for shape in wanted:
        result: BenchmarkResult = benchmark(models, [shape], **options)
        for timing in result.timings:
            rows.append(
                {
                    "name": timing.name,
                    "batch_size": shape.batch_size,
                    "seq_len": shape.seq_len,
                    "median_s": timing.median_s,
                    "p90_s": timing.p90_s,
                    "speedup": result.speedup(timing.name, models[0].name, shape),
                    "peak_rss_bytes": result.peak_rss_bytes[timing.name],
                }
            )
            print(line(rows[-1]), flush=True)
    return rows


def line(row: dict[str, Any]) -> str:
    """Format one row of the table."""
    shape = f"{row['batch_size']} x {row['seq_len']}"
    milliseconds, megabytes = 1e3 * row["median_s"], row["peak_rss_bytes"] / 1e6
    return f"{row['name']:<32} {shape:>9} {milliseconds:>10.2f} ms {row['speedup']:>6.2f}x {megabytes:>7.0f} MB"


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot milliseconds over length, milliseconds over batch size, and memory over batch size."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    panels = (
        ("tokens, one text", "ms", lambda r: r["batch_size"] == 1, lambda r: (r["seq_len"], 1e3 * r["median_s"])),
        (
            f"texts of {TOKENS} tokens",
            "ms",
            lambda r: r["seq_len"] == TOKENS,
            lambda r: (r["batch_size"], 1e3 * r["median_s"]),
        ),
        (
            f"texts of {TOKENS} tokens",
            "MB, peak",
            lambda r: r["seq_len"] == TOKENS,
            lambda r: (r["batch_size"], r["peak_rss_bytes"] / 1e6),
        ),
    )
    for axis, (x, y, belongs, point) in zip(axes, panels, strict=True):
        for name in dict.fromkeys(row["name"] for row in rows):
            points = sorted(point(row) for row in rows if row["name"] == name and belongs(row))
            axis.plot(*zip(*points, strict=True), marker="o", label=name)
        axis.set(xlabel=x, ylabel=y, xscale="log", yscale="log")
        sizes = sorted({point(row)[0] for row in rows if belongs(row)})
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axis.grid(alpha=0.3)
    axes[0].legend()
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", nargs="+", type=Path)
    parser.add_argument("--batch-size", nargs="+", type=int, default=[1, 2, 4, 8, 16, 32])
    parser.add_argument("--seq-len", nargs="+", type=int, default=[16, 32, 64, 128, 256, 512])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    if given.plot and find_spec("matplotlib") is None:  # said before an hour of measuring, not behind it
        raise SystemExit("--plot needs matplotlib: pip install matplotlib")
    wanted = shapes(given.batch_size, given.seq_len)
    rows = measure(candidates(given.exports), wanted, threads=given.threads, rounds=given.rounds)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")
    if given.plot:
        plot(rows, given.plot)


if __name__ == "__main__":
    main()
