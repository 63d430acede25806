"""``qdq analyze``: what each quantized slot costs, and what to keep in float first."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from qdq.analysis.settings import AnalysisSettings, TaskMetricSettings
from qdq.cli.analyze_report import shown
from qdq.cli.loading import opened
from qdq.cli.session import INTERRUPTED, JsonOption, QuietOption, SeedOption, Session, VerboseOption, command
from qdq.cli.threads import ThreadsOption, set_threads
from qdq.load_settings import DEFAULT_LOADING, LoadSettings

__all__ = ["analyze"]

_DEFAULT = AnalysisSettings()
_NO_METRIC = TaskMetricSettings()


@command
def analyze(
    path: Annotated[Path, typer.Argument(metavar="PATH", help="Quantized checkpoint to analyze.")],
    data: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Sample text, preferably not that of the calibration; with --task, labeled examples.",
        ),
    ],
    settings: AnalysisSettings = _DEFAULT,
    top: Annotated[int | None, typer.Option(metavar="N", help="Show only the N groups that cost most.", min=1)] = None,
    text_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column or key of the text; by default the usual names are tried."),
    ] = None,
    text_pair_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column or key of the second text of each sample.")
    ] = None,
    threads: ThreadsOption = None,
    target_cosine: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help="Find the fewest slots to keep in float for a mean cosine to the float model of at least X.",
            rich_help_panel="Target",
        ),
    ] = None,
    target_sqnr: Annotated[
        float | None,
        typer.Option(
            metavar="DB",
            help="Find the fewest slots to keep in float for an SQNR of at least this many decibels.",
            rich_help_panel="Target",
        ),
    ] = None,
    task_metric: Annotated[TaskMetricSettings, "Metric of a task"] = _NO_METRIC,
    loading: LoadSettings = DEFAULT_LOADING,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,
) -> None:
    """Measure how much accuracy each quantized module, layer or slot costs, and find what to keep in float.

    Each group of slots is quantized alone, then everything but that group; both are compared with the float model. The
    groups to keep in float are printed as --exclude options for qdq calibrate. Ctrl-C shows what was found so far.

    Example: qdq analyze quantized/ --data text.txt --target-cosine 0.998
    """
    session = Session(json=json, verbose=verbose, quiet=quiet)
    from calibration.sensitivity.exclusions import SimilarityTarget
    from qdq.analysis.checkpoint import analyze_checkpoint
    from qdq.data.examples import Columns

    has_target = target_cosine is not None or target_sqnr is not None
    target = SimilarityTarget(cosine=target_cosine, sqnr_db=target_sqnr) if has_target else None
    columns = Columns(text=text_column, text_pair=text_pair_column)
    set_threads(threads)
    with session.progress("reading", total=1) as advance:
        found = analyze_checkpoint(
            opened(path, loading, seed=seed),
            data,
            settings=replace(settings, seed=seed),
            task_metric=task_metric,
            target=target,
            top=top,
            columns=columns if columns.names else None,
            progress=lambda stage, done, total: advance(done, stage, total or done),
        )
    if not found.complete and found.ranking is not None:
        session.say(f"interrupted; measured on {found.ranking.batches} of {found.batches_planned} batches:")
    session.result(found.to_dict(top), *shown(found, top))
    if not found.complete:
        raise typer.Exit(INTERRUPTED)
