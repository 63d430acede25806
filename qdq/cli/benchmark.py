"""``qdq benchmark``: compare the latency of exported models, in one runtime or in several."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdq.cli.profile import runtime_of
from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command
from qdq.cli.tables import new_table

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.benchmark import BenchmarkResult, Candidate, Shape

__all__ = ["benchmark", "run_benchmark"]

_RUNTIMES = ("onnxruntime", "openvino")


@command
def benchmark(
    exported: Annotated[
        list[Path],
        typer.Argument(
            metavar="OUT_DIR", help="Exported directories, .onnx files or engines; the first is the baseline."
        ),
    ],
    batch_size: Annotated[
        list[int] | None,
        typer.Option(metavar="B", help="Batch size to time; by default 1 and 8, or what all models take. Repeatable."),
    ] = None,
    seq_len: Annotated[
        list[int] | None,
        typer.Option(
            metavar="L",
            help="Length in tokens to time; by default 128, or what all models take. Repeatable.",
        ),
    ] = None,
    threads: Annotated[int, typer.Option(metavar="N", help="Number of threads to time with.", min=1)] = 2,
    rounds: Annotated[
        int,
        typer.Option(
            metavar="N", help="Number of timing rounds; each times every model once, in a new process.", min=1
        ),
    ] = 5,
    warmup: Annotated[
        int, typer.Option(metavar="N", help="Number of untimed runs at the beginning of each round.", min=0)
    ] = 3,
    runtime: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME",
            help="Runtime for all files: onnxruntime or openvino; by default the one that each file was exported for. "
            "Repeatable.",
        ),
    ] = None,
    engine: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="TensorRT engine to time on the GPU as well. Repeatable.")
    ] = None,
    best_float: Annotated[
        bool,
        typer.Option(
            "--best-float",
            metavar="",
            help="Also time the baseline after ONNX Runtime's transformer optimizer, and report speed-ups over the "
            "faster of the two.",
        ),
    ] = False,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,  # noqa: ARG001 (every model is timed on the same fixed input)
) -> None:
    """Compare the latency of exported models.

    Each model runs in its own process, the models take turns in every round, and medians are reported.

    Examples: qdq benchmark float/ ort/ --batch-size 8; qdq benchmark float/ ort/ ov/ --best-float
    """
    session = Session(json=json, verbose=verbose, quiet=quiet)
    from exporters.benchmark import accepted_shape, chosen_shapes
    from qdq.errors import ConfigError

    for name in runtime or ():
        if name not in _RUNTIMES:
            raise ConfigError(f"no runtime {name!r}: it must be onnxruntime or openvino")
    candidates = _candidates([*exported, *(engine or [])], runtime)
    accepted = {candidate.name: accepted_shape(candidate.path) for candidate in candidates}
    shapes = chosen_shapes(accepted, batch_size, seq_len)
    with tempfile.TemporaryDirectory() as folder:
        baselines = [candidates[0].name]
        if best_float:
            candidates.insert(1, _optimized(candidates[0], Path(folder)))
            baselines.append(candidates[1].name)
        result = run_benchmark(session, candidates, shapes, threads=threads, rounds=rounds, warmup=warmup)
    _show(session, result, candidates, baselines)


def _candidates(exported: Sequence[Path], runtimes: Sequence[str] | None) -> list[Candidate]:
    """Return every file in every runtime, named after both if there are several runtimes."""
    from exporters.benchmark import Candidate
    from exporters.tensorrt.plan_metadata import is_plan

    found = []
    for given in exported:
        if is_plan(given):
            found.append(Candidate(str(given), given, "tensorrt"))
            continue
        path = _file_of(given)
        for runtime in runtimes or [runtime_of(path)]:
            name = f"{given} in {runtime}" if len(runtimes or ()) > 1 else str(given)
            found.append(Candidate(name, path, runtime))  # type: ignore[arg-type]
    return found


def _file_of(given: Path) -> Path:
    """Return the model file; where there is none, the name that it would have, so that all missing ones are listed."""
    from qdq.onnx_files import MODEL_FILE, model_file_of

    if not given.is_dir():
        return given
    has_files = any(path for place in (given, given / "onnx") for path in place.glob("*.onnx"))
    return model_file_of(given) if has_files else given / MODEL_FILE


def _optimized(baseline: Candidate, folder: Path) -> Candidate:
    from exporters.benchmark import Candidate
    from exporters.optimized_float import optimized_float
    from qdq.errors import CheckpointError

    if baseline.problem is not None:
        raise CheckpointError(baseline.problem)
    path = optimized_float(baseline.path, folder / "optimized.onnx")
    return Candidate(f"{baseline.name}, optimized", path)


def _show(session: Session, result: BenchmarkResult, candidates: Sequence[Candidate], baselines: Sequence[str]) -> None:
    runtimes = {candidate.name: candidate.runtime for candidate in candidates}
    several = len(set(runtimes.values())) > 1
    table = new_table(
        "model",
        "shape",
        *(["runtime"] if several else []),
        *("median\nms", "p10\nms", "p90\nms", "p99\nms", "memory\nMB", "speed-up"),
        words=1,
    )
    rows: list[dict[str, Any]] = []
    for entry in result.to_dict()["timings"]:
        name, shape = entry["name"], _shape(entry["shape"])
        # Over the faster baseline: the smaller of the two ratios.
        speedup = min(result.speedup(name, baseline, shape) for baseline in baselines)
        rows.append({**entry, "runtime": runtimes[name], "speedup": speedup})
        table.add_row(
            name,
            str(shape),
            *([runtimes[name]] if several else []),
            *(f"{1e3 * entry[key]:.2f}" for key in ("median_s", "p10_s", "p90_s", "p99_s")),
            f"{entry['peak_rss_bytes'] / 1e6:.0f}",
            f"{speedup:.2f}x",
        )
    used = " and ".join(dict.fromkeys(runtimes.values()))
    session.result(
        {
            **result.to_dict(),
            "baseline": baselines[0],
            "baselines": list(baselines),
            "runtimes": list(dict.fromkeys(runtimes.values())),
            "timings": rows,
        },
        f"Latency in {used}, {result.threads} threads, {result.machine.cpu}",
        table,
    )


def _shape(values: dict[str, int]) -> Shape:
    from exporters.benchmark import Shape

    return Shape(**values)


def run_benchmark(session: Session, candidates: list[Candidate], shapes: list[Any], **options: Any) -> BenchmarkResult:
    """Time the candidates, with a progress bar."""
    from exporters import benchmark as timing

    with session.progress("timing", total=1) as advance:
        return timing.benchmark(
            candidates,
            shapes,
            progress=lambda done, total, name: advance(done, f"timing {name}" if name else None, total),
            **options,
        )
