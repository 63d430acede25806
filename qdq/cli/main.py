"""The command ``qdq``."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

import qdq
from qdq.cli.benchmark import benchmark
from qdq.cli.calibrate import calibrate
from qdq.cli.export import export
from qdq.cli.inspect import inspect
from qdq.cli.quickstart import quickstart
from qdq.cli.verify import verify

__all__ = ["app", "main"]

app = typer.Typer(
    name="qdq",
    help="BERT-family encoders from a Hugging Face checkpoint to int8: quantized, exported to ONNX, and proven.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    # Peers are split between --calib-data and --calib_data; both are right here.
    context_settings={
        "token_normalize_func": lambda name: name.replace("_", "-"),
        "help_option_names": ["-h", "--help"],
    },
)
for function in (quickstart, calibrate, export, verify, benchmark, inspect):
    app.command()(function)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"qdq {qdq.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options of the program itself."""


def main() -> None:
    """Entry point; an interrupt outside of a command ends as one inside does."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
