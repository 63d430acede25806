"""``qdq benchmark``: latency of exported models side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command
from qdq.cli.tables import new_table

if TYPE_CHECKING:
    from exporters.benchmark import BenchmarkResult, Candidate

__all__ = ["benchmark", "run_benchmark"]


@command
def benchmark(
    exported: Annotated[
        list[Path],
        typer.Argument(metavar="OUT_DIR", help="Exported directories or .onnx files; the first is the baseline."),
    ],
    batch_size: Annotated[
        list[int] | None, typer.Option(metavar="B", help="Rows in a batch; repeatable. 1 and 8 when not given.")
    ] = None,
    seq_len: Annotated[
        list[int] | None, typer.Option(metavar="L", help="Tokens in a row; repeatable. 128 when not given.")
    ] = None,
    threads: Annotated[int, typer.Option(metavar="N", help="Threads of the runtime.", min=1)] = 2,
    rounds: Annotated[int, typer.Option(metavar="N", help="Interleaved rounds, each in fresh processes.", min=1)] = 5,
    runtime: Annotated[str, typer.Option(metavar="NAME", help="onnxruntime or openvino.")] = "onnxruntime",
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,  # noqa: ARG001 (every model is timed on the same fixed input)
) -> None:
    """Time exported models side by side: interleaved, one model a process, medians.

    Example: qdq benchmark float/ exported/ --batch-size 1 --batch-size 8
    """
    session = Session(json=json, verbose=verbose, quiet=quiet)
    from exporters.benchmark import Candidate, Shape
    from exporters.folder import MODEL_FILE
    from qdq.errors import ConfigError

    if runtime not in ("onnxruntime", "openvino"):
        raise ConfigError(f"no runtime {runtime!r}: it must be onnxruntime or openvino")
    paths = [path / MODEL_FILE if path.is_dir() else path for path in exported]
    candidates = [
        Candidate(str(given), path, runtime)  # type: ignore[arg-type]
        for given, path in zip(exported, paths, strict=True)
    ]
    shapes = [Shape(b, s) for s in seq_len or [128] for b in batch_size or [1, 8]]
    result = run_benchmark(session, candidates, shapes, threads=threads, rounds=rounds)
    baseline = candidates[0].name
    table = new_table("model", "shape", "median\nms", "p10\nms", "p90\nms", "speed-up")
    rows = []
    for timing in result.timings:
        speedup = result.speedup(timing.name, baseline, timing.shape)
        rows.append({**timing.to_dict(), "speedup": speedup})
        seconds = (timing.median_s, timing.p10_s, timing.p90_s)
        table.add_row(timing.name, str(timing.shape), *(f"{1e3 * s:.2f}" for s in seconds), f"{speedup:.2f}x")
    session.result(
        {**result.to_dict(), "baseline": baseline, "runtime": runtime, "timings": rows},
        f"Latency in {runtime}, {threads} threads, {result.machine.cpu}",
        table,
    )


def run_benchmark(session: Session, candidates: list[Candidate], shapes: list[Any], **options: Any) -> BenchmarkResult:
    """Time with a progress bar."""
    from exporters import benchmark as timing

    with session.progress("timing", total=1) as advance:
        return timing.benchmark(
            candidates,
            shapes,
            progress=lambda done, total, name: advance(done, f"timing {name}" if name else None, total),
            **options,
        )
