"""``qdq convert``: convert a checkpoint of another package to a Hugging Face directory."""

from __future__ import annotations

import json as json_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command
from qdq.cli.tables import new_table

if TYPE_CHECKING:
    from rich.table import Table

    from qdq.interop.conversion import Conversion

__all__ = ["convert"]

_TENSORFLOW = "TensorFlow"


@command
def convert(
    source: Annotated[
        Path, typer.Argument(metavar="SRC", help="Checkpoint to convert: a file, a prefix of files, or a directory.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Directory to write.")],
    source_format: Annotated[
        str,
        typer.Option(
            "--from", metavar="NAME", help="Format of the checkpoint: megatron-lm, tensorflow or pytorch-quantization."
        ),
    ],
    task: Annotated[
        str | None,
        typer.Option(metavar="TASK", help="Task whose head is kept; by default the one that uses every tensor."),
    ] = None,
    set_field: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Field of config.json to set, such as layer_norm_eps=1e-5. Repeatable."
        ),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="JSON file with the sizes of the model; by default bert_config.json or the like beside SRC.",
            rich_help_panel=_TENSORFLOW,
        ),
    ] = None,
    model_type: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Family of the model: bert, albert, realm, ...; by default it is guessed from the configuration.",
            rich_help_panel=_TENSORFLOW,
        ),
    ] = None,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,  # noqa: ARG001 (a conversion has nothing random)
) -> None:
    """Convert a checkpoint of Megatron-LM, TensorFlow or pytorch-quantization to a Hugging Face directory.

    With -v, print where each tensor went or why it was left out. An unknown tensor is an error.

    Example: qdq convert --from megatron-lm release/mp_rank_00/model_optim_rng.pt -o model/
    """
    session = Session(json=json, verbose=verbose, quiet=quiet)
    from qdq import conversion

    overrides = _fields(set_field or [])
    with session.progress(f"converting {source}"):
        report = conversion.convert(
            source,
            output,
            format=source_format,
            task=task,
            config=config,
            model_type=model_type,
            overrides=overrides,
        )
    for note in report.notes:
        session.say(note)
    shown = [_by_name(report)] if verbose else []
    left_out = ", ".join(f"{count} {reason}" for reason, count in report.reasons().items())
    session.result(
        {"output": output, **report.to_dict()},
        *shown,
        f"{output}: {len(report.mapped)} tensors mapped, {len(report.skipped)} left out"
        f"{f' ({left_out})' if left_out else ''}",
    )


def _fields(given: list[str]) -> dict[str, Any]:
    """Parse ``NAME=VALUE``, where the value is JSON or else a text."""
    from qdq.errors import ConfigError, describe_problems

    found: dict[str, Any] = {}
    problems = []
    for entry in given:
        name, equals, text = entry.partition("=")
        if not equals or not name:
            problems.append(f"{entry!r}: write NAME=VALUE")
            continue
        try:
            found[name] = json_module.loads(text)
        except ValueError:
            found[name] = text
    if problems:
        raise ConfigError(describe_problems("--set", problems))
    return found


def _by_name(report: Conversion) -> Table:
    table = new_table("tensor", "becomes", "how", words=3)
    for entry in report.mapped:
        table.add_row(entry.name, "\n".join(entry.targets), entry.how)
    for left in report.skipped:
        table.add_row(left.name, "-", left.reason)
    return table
