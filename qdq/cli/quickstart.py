"""``qdq quickstart``: the whole way with one real model, from its checkpoint to verified and timed int8 files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qdq.cli.loading import opened
from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command
from qdq.cli.tables import new_table
from qdq.errors import VerificationError, describe_problems
from qdq.load_settings import DEFAULT_LOADING, LoadSettings

if TYPE_CHECKING:
    from rich.table import Table

    from qdq.quickstart.report import Report

__all__ = ["quickstart", "report_table"]


@command
def quickstart(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Directory to write.")] = Path(
        "quickstart"
    ),
    model: Annotated[
        Path | None,
        typer.Option(
            "--model",
            "-m",
            metavar="DIR",
            help="Hugging Face directory of another model; by default all-MiniLM-L6-v2 from the extra demo.",
        ),
    ] = None,
    threads: Annotated[int, typer.Option(metavar="N", help="Number of threads to time with.", min=1)] = 2,
    rounds: Annotated[
        int, typer.Option(metavar="N", help="Number of timing rounds; the files take turns in each.", min=1)
    ] = 5,
    loading: LoadSettings = DEFAULT_LOADING,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,
) -> None:
    """Quantize a sentence-embedding model, export it for every target, verify the files and time them.

    Needs the extra "demo", which contains the model all-MiniLM-L6-v2, or another sentence-embedding model with -m.
    """
    session = Session(json=json, verbose=verbose, quiet=quiet)
    from qdq.quickstart.demonstration import demo_model, demonstrate

    source = model or demo_model()
    with session.progress("calibrating", total=1) as advance:
        report = demonstrate(
            opened(source, loading, seed=seed),
            output,
            name=source.name if model else "all-MiniLM-L6-v2",
            threads=threads,
            rounds=rounds,
            seed=seed,
            progress=lambda stage, done, total: advance(done, stage, total),
            say=session.say,
        )
    problems = report.problems()
    session.result(
        {"output": output, **report.to_dict()},
        report.title(),
        "",
        report_table(report),
        "",
        *report.elsewhere(),
        f"everything is in {output}/, start with report.md",
        error=VerificationError(describe_problems("not verified", problems)) if problems else None,
    )


def report_table(report: Report) -> Table:
    """Return the table of a report for the terminal, in which two shapes fit into 80 columns."""
    table = new_table(*("\n".join(column) for column in report.columns()))
    for cells in report.body():
        table.add_row(*cells)
    return table
