"""What every command shares: options, output, progress, and the end with the right exit code."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.text import Text

from qdq.cli.crash import FAILED, OUT_OF_MEMORY, describe, is_out_of_memory
from qdq.cli.encoding import check_encoding
from qdq.cli.needed_options import check_needed_options
from qdq.cli.option_groups import with_groups
from qdq.errors import QDQError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.table import Table

__all__ = ["INTERRUPTED", "JsonOption", "QuietOption", "SeedOption", "Session", "VerboseOption", "command", "end_with"]

# An empty metavar keeps the help of flags free of their type.
JsonOption = Annotated[
    bool,
    typer.Option(
        "--json",
        metavar="",
        help="Print the result as one JSON document on stdout, and nothing else there.",
        rich_help_panel="Output",
    ),
]
VerboseOption = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        metavar="",
        show_default=False,
        help="Print more messages; -vv prints all of them.",
        rich_help_panel="Output",
    ),
]
QuietOption = Annotated[
    bool,
    typer.Option(
        "--quiet",
        "-q",
        metavar="",
        help="Print only results and errors, no progress or warnings.",
        rich_help_panel="Output",
    ),
]
SeedOption = Annotated[
    int,
    typer.Option("--seed", metavar="N", help="Seed of all random choices.", rich_help_panel="Output"),
]

P = ParamSpec("P")

INTERRUPTED = 130
_CONTEXT = "typer_context"
_WIDE = 500  # columns, where no terminal sets a limit: what is piped is not folded


class Session:
    """Print the results of a command on stdout, and everything else on stderr."""

    def __init__(self, *, json: bool, verbose: int, quiet: bool) -> None:
        self._json = json
        self._quiet = quiet
        self._out = _console(stderr=False)
        self._err = _console(stderr=True)
        level = logging.ERROR if quiet else [logging.WARNING, logging.INFO][min(verbose, 1)]
        handler = RichHandler(console=self._err, show_path=False, show_time=False)
        logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
        for room in ("qdq", "calibration", "exporters"):
            logging.getLogger(room).setLevel(logging.DEBUG if verbose > 1 else level)

    def say(self, text: str) -> None:
        """Print a line about what happened, for people."""
        if not self._quiet and not self._json:
            self._err.print(text, soft_wrap=True)

    def result(self, document: dict[str, Any], *shown: Table | str, error: QDQError | None = None) -> None:
        """Print the result: the document with ``--json``, otherwise what is meant for people.

        A check that failed has a result, too. With ``error`` the error becomes part of the document, and the command
        ends.
        """
        if self._json:
            _print_json(document if error is None else {**document, **_described(error)})
        else:
            try:
                for item in shown:
                    self._out.print(item, soft_wrap=isinstance(item, str))
            except BrokenPipeError:
                _silence_stdout()
        if error is not None:
            end_with(**_described(error), json=False)

    @contextmanager
    def progress(self, description: str, total: int | None = None) -> Iterator[Callable[..., None]]:
        """Show progress on stderr, with a bar if there is a total.

        Yields:
            A function that takes how much is done and, if they change, the description and the total.
        """
        bars = [] if total is None else [BarColumn(), MofNCompleteColumn()]
        columns = [SpinnerColumn(), TextColumn("{task.description}", markup=False), *bars, TimeElapsedColumn()]
        # A log file has no use for a bar that moves.
        hidden = self._quiet or self._json or not self._err.is_terminal
        with Progress(*columns, console=self._err, transient=True, disable=hidden) as bar:
            task = bar.add_task(description, total=total)

            def advance(done: int, description: str | None = None, total: int | None = None) -> None:
                bar.update(task, completed=done, total=total, description=description)

            yield advance


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Make a command of ``function``: its errors become one clear message and an exit code.

    Errors that nobody foresaw are defects of qdq. They end with exit code 70 and a file to report them with. Parameters
    may be groups of options; see :func:`qdq.cli.option_groups.with_groups`.

    Args:
        function: What the command does; one of its parameters is ``json``.
    """
    function = with_groups(function)
    function.__doc__ = _unwrapped(function.__doc__ or "")

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        json = bool(kwargs.get("json"))
        context: Any = kwargs.pop(_CONTEXT, None)
        try:
            check_encoding(kwargs.values())
            if context is not None:
                check_needed_options(context)
            function(*args, **kwargs)
        except QDQError as error:
            end_with(**_described(error), json=json)
        except KeyboardInterrupt as error:
            message = str(error) or "interrupted; nothing was changed"
            end_with(message, kind="KeyboardInterrupt", exit_code=INTERRUPTED, json=json)
        except UnicodeEncodeError as error:
            message = f"{error.object!r:.500} has bytes that are not UTF-8: rename the file, or write the text in UTF-8"
            end_with(message, kind=type(error).__name__, exit_code=QDQError.exit_code, json=json)
        except OSError as error:
            message = f"{error.filename or 'input/output'}: {error.strerror or error}"
            end_with(message, kind=type(error).__name__, exit_code=StorageError.exit_code, json=json)
        except typer.Exit:
            raise
        except Exception as error:
            if is_out_of_memory(error):
                end_with(OUT_OF_MEMORY, kind="MemoryError", exit_code=StorageError.exit_code, json=json)
            end_with(describe(error), kind=type(error).__name__, exit_code=FAILED, json=json)

    # typer hands its context to a parameter of this type, which is no option.
    parameters = inspect.signature(function).parameters.values()
    added = inspect.Parameter(_CONTEXT, inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)
    run.__signature__ = inspect.Signature([*parameters, added])  # type: ignore[attr-defined]
    run.__annotations__ = {**function.__annotations__, _CONTEXT: typer.Context}
    return run


def _unwrapped(text: str) -> str:
    """Return a docstring with one line for each paragraph, which a terminal then wraps at its own width."""
    return "\n\n".join(" ".join(paragraph.split()) for paragraph in inspect.cleandoc(text).split("\n\n"))


def end_with(error: str, *, kind: str, exit_code: int, json: bool) -> NoReturn:
    """Print what went wrong, on stderr and with ``json`` also on stdout, and end the command.

    Raises:
        typer.Exit: Always.
    """
    if json:
        _print_json({"error": error, "kind": kind, "exit_code": exit_code})
    _console(stderr=True).print(Text.assemble(("error:", "red"), " ", error), soft_wrap=True)
    raise typer.Exit(exit_code)


def _described(error: QDQError) -> dict[str, Any]:
    return {"error": str(error), "kind": type(error).__name__, "exit_code": error.exit_code}


def _print_json(document: dict[str, Any]) -> None:
    try:
        print(json.dumps(document, indent=2, allow_nan=False, default=_plain), flush=True)
    except BrokenPipeError:
        _silence_stdout()


def _plain(value: object) -> str:
    """Return the text that stands for a path in JSON."""
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} cannot be written as JSON")


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Raise, so that the caller can choose the exit code."""
        raise BrokenPipeError


def _console(*, stderr: bool) -> Console:
    """Return a console that prints text as it is: a path may look like markup."""
    is_terminal = (sys.stderr if stderr else sys.stdout).isatty()
    return _Console(stderr=stderr, width=None if is_terminal else _WIDE, markup=False, emoji=False, highlight=False)


def _silence_stdout() -> None:
    """Drop the rest of the output after its reader has gone, so that the interpreter does not fail at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
