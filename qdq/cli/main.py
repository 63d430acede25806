"""The command ``qdq``."""

from __future__ import annotations

import io
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import qdq
from qdq.cli.analyze import analyze
from qdq.cli.benchmark import benchmark
from qdq.cli.build import build
from qdq.cli.calibrate import calibrate
from qdq.cli.convert import convert
from qdq.cli.evaluate import evaluate
from qdq.cli.export import export
from qdq.cli.finetune import finetune
from qdq.cli.generate import generate
from qdq.cli.inspect import inspect
from qdq.cli.lint import lint
from qdq.cli.quickstart import quickstart
from qdq.cli.realm import app as realm_app
from qdq.cli.session import INTERRUPTED, end_with
from qdq.cli.verify import verify

__all__ = ["app", "main"]

app = typer.Typer(
    name="qdq",
    help="Take BERT-family encoders from a Hugging Face checkpoint to int8: quantize, export, verify, evaluate.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    # Other packages spell options with dashes or with underscores; both work here.
    context_settings={
        "token_normalize_func": lambda name: name.replace("_", "-"),
        "help_option_names": ["-h", "--help"],
    },
)
_COMMANDS = (
    quickstart,
    calibrate,
    finetune,
    export,
    verify,
    lint,
    build,
    evaluate,
    analyze,
    benchmark,
    convert,
    generate,
)
for function in (*_COMMANDS, inspect):
    app.command()(function)
app.add_typer(realm_app, name="realm")

_UsageError: type[Exception] = typer.BadParameter.__mro__[1]  # the one way to it in every release of typer


def _version(wanted: bool) -> None:
    if wanted:
        print(f"qdq {qdq.__version__}")
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", metavar="", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Take the options of the program itself."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command.

    Args:
        arguments: The command line without the name of the program; None takes that of the process.

    Raises:
        SystemExit: Always, with the exit code.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name need not be in any encoding
    try:
        sys.exit(_run(arguments or ["--help"]))
    except (KeyboardInterrupt, typer.Abort):
        sys.exit(INTERRUPTED)  # outside of a command, which ends by itself


def _run(arguments: Sequence[str]) -> int:
    try:
        return app(arguments, prog_name="qdq", standalone_mode=False) or 0
    except _UsageError as error:
        context = getattr(error, "ctx", None)
        command = context.command_path if context else "qdq"
        message = f"{error.format_message().rstrip('.')}; see {command} --help"  # type: ignore[attr-defined]
        try:
            end_with(message, kind="UsageError", exit_code=2, json="--json" in arguments)
        except typer.Exit as end:
            return end.exit_code


if __name__ == "__main__":
    main()
