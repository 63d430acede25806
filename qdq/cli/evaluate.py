"""``qdq evaluate``: the metrics of a model on a task, alone or compared with a baseline."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qdq.cli.column_options import USUAL_COLUMNS, ColumnOptions
from qdq.cli.loading import opened, opened_beside
from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command
from qdq.cli.tables import new_table
from qdq.cli.threads import ThreadsOption, set_threads
from qdq.load_settings import DEFAULT_LOADING, LoadSettings
from qdq.tasks.evaluation_settings import EvaluationSettings

if TYPE_CHECKING:
    from rich.table import Table

    from qdq.tasks.evaluate import Evaluation

__all__ = ["evaluate"]

_TASKS = (
    "Task to evaluate: sts, sequence-classification, token-classification, question-answering, multiple-choice, "
    "masked-lm or retrieval."
)
_DEFAULT = EvaluationSettings()


@command
def evaluate(
    path: Annotated[
        Path,
        typer.Argument(
            metavar="PATH", help="Model to evaluate: a checkpoint, an exported directory, an .onnx file or an engine."
        ),
    ],
    task: Annotated[str, typer.Option(metavar="TASK", help=_TASKS)],
    data: Annotated[
        str, typer.Option(metavar="FILE", help="Labeled examples: .tsv, .csv, .jsonl, .conll, SQuAD's .json, ...")
    ],
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="PATH2",
            help="Baseline to compare with on the same examples; whatever can be evaluated.",
        ),
    ] = None,
    max_drop: Annotated[
        str | None,
        typer.Option(
            metavar="1%|0.5",
            help="With --against: largest acceptable loss of the metric, as a percentage of the baseline (1%) or in "
            "points "
            "(0.5). Exit code 1 means that the loss is larger.",
        ),
    ] = None,
    metric: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Metric that --max-drop checks; by default the first one of the table."),
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Runtime for an exported directory: onnxruntime or openvino; by default onnxruntime."
        ),
    ] = None,
    threads: ThreadsOption = None,
    settings: EvaluationSettings = _DEFAULT,
    resamples: Annotated[
        int,
        typer.Option(
            metavar="N", help="Number of bootstrap resamples for the confidence intervals; 0 computes none.", min=0
        ),
    ] = 1000,
    columns: ColumnOptions = USUAL_COLUMNS,
    loading: LoadSettings = DEFAULT_LOADING,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,
) -> None:
    """Measure a model on a task, with confidence intervals, and compare it with a baseline.

    The task token-classification needs the extra "evaluate".

    Example: qdq evaluate ort/ --task sts --data sts.tsv --against model/ --max-drop 1%
    """
    session = Session(json=json, verbose=verbose, quiet=quiet)
    from qdq.errors import VerificationError
    from qdq.tasks.evaluate import evaluate as run

    set_threads(threads)
    with session.progress("evaluating", total=1) as advance:
        result = run(
            opened(path, loading, seed=seed) if path.is_dir() else path,  # an engine is a file
            task,
            data,
            against=opened_beside(against, loading, seed=seed) if against and against.is_dir() else against,
            max_drop=max_drop,
            metric=metric,
            runtime=runtime,
            threads=threads,
            resamples=resamples,
            settings=replace(settings, columns=columns.chosen(), seed=seed),
            progress=lambda done, total: advance(done, f"evaluating {task}", total or done),
        )
    for note in result.notes:
        session.say(note)
    error = None
    if result.drop is not None and not result.holds:
        error = VerificationError(result.drop.describe(str(path), str(against)))
    session.result(result.to_dict(), *_shown(result), error=error)


def _shown(result: Evaluation) -> list[Table | str]:
    skipped = f", {result.skipped:,} rows without label skipped" if result.skipped else ""
    title = f"{result.task}: {result.model} in {result.runtime}, {result.examples:,} examples{skipped}"
    if result.against is None:
        table = new_table("metric", "value", "95 % interval")
        for name, value in result.metrics.items():
            scale = result.scales[name]
            table.add_row(name, _figure(value, scale), _interval(result.intervals[name], scale))
        return [title, table]
    against = result.against
    table = new_table("metric", "value", "95 % interval", "baseline", "difference", "95 % interval", "p")
    for name, value in result.metrics.items():
        scale, difference = result.scales[name], against.differences[name]
        table.add_row(
            name,
            _figure(value, scale),
            _interval(result.intervals[name], scale),
            _figure(against.metrics[name], scale),
            _figure(difference.value, scale, sign="+"),
            _interval(difference.interval, scale),
            "" if difference.p_value is None else f"{difference.p_value:.3f}",
        )
    return [title, f"baseline: {against.model} in {against.runtime}", table]


def _figure(value: float, scale: float, *, sign: str = "") -> str:
    return f"{scale * value:{sign}.2f}" if math.isfinite(value) else "undefined"


def _interval(interval: tuple[float, float] | None, scale: float) -> str:
    return "" if interval is None else " .. ".join(f"{scale * bound:.2f}" for bound in interval)
