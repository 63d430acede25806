"""What every command shares: options, output, progress, and the end with the right exit code."""

from __future__ import annotations

import functools
import json
import logging
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from qdq.errors import QDQError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from rich.table import Table

__all__ = ["JsonOption", "QuietOption", "SeedOption", "Session", "VerboseOption", "command"]

JsonOption = Annotated[
    bool,
    typer.Option("--json", help="Print one JSON document on stdout, and nothing else there.", rich_help_panel="Output"),
]
VerboseOption = Annotated[
    int, typer.Option("--verbose", "-v", count=True, help="Say more; twice for everything.", rich_help_panel="Output")
]
QuietOption = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress, only results and errors.", rich_help_panel="Output")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Of everything random.", rich_help_panel="Output")]

P = ParamSpec("P")

_INTERRUPTED = 130
_json_wanted = False  # of the command that runs; errors are told in the same form as results


class Session:
    """One run of a command: results on stdout, everything else on stderr."""

    def __init__(self, *, json: bool, verbose: int, quiet: bool) -> None:
        global _json_wanted  # noqa: PLW0603 (one command a process)
        _json_wanted = json
        self._json = json
        self._quiet = quiet
        self._out = Console()
        self._err = Console(stderr=True)
        level = logging.ERROR if quiet else [logging.WARNING, logging.INFO][min(verbose, 1)]
        handler = RichHandler(console=self._err, show_path=False, show_time=False)
        logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[handler], force=True)
        for room in ("qdq", "calibration", "exporters"):
            logging.getLogger(room).setLevel(logging.DEBUG if verbose > 1 else level)

    def say(self, text: str) -> None:
        """A line about what happened, for people."""
        if not self._quiet and not self._json:
            self._err.print(text, highlight=False, soft_wrap=True)

    def result(self, document: dict[str, Any], *shown: Table | str) -> None:
        """The result: the document with ``--json``, what is shown to people without."""
        if self._json:
            print(json.dumps(document, indent=2, allow_nan=False, default=_plain))
            return
        for item in shown:
            self._out.print(item, soft_wrap=isinstance(item, str), highlight=False)

    @contextmanager
    def progress(self, description: str, total: int | None = None) -> Iterator[Callable[..., None]]:
        """A progress bar on stderr; the callable takes how much is done, and optionally a new description."""
        columns = [
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        ]
        with Progress(*columns, console=self._err, transient=True, disable=self._quiet or self._json) as bar:
            task = bar.add_task(description, total=total)

            def advance(done: int, description: str | None = None, total: int | None = None) -> None:
                bar.update(task, completed=done, total=total, description=description)

            yield advance


def command(function: Callable[P, None]) -> Callable[P, None]:
    """Turn the errors of ``function`` into one clear message and the exit code they stand for."""

    @functools.wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            function(*args, **kwargs)
        except QDQError as error:
            _end(str(error), error.exit_code, error)
        except KeyboardInterrupt as error:
            _end("interrupted; nothing was changed", _INTERRUPTED, error)
        except BrokenPipeError:
            sys.stderr.close()  # whoever read our output has enough
            raise typer.Exit(0) from None
        except OSError as error:
            _end(f"{error.filename or 'input/output'}: {error.strerror or error}", StorageError.exit_code, error)

    return run


def _end(message: str, code: int, error: BaseException) -> None:
    if _json_wanted:
        print(json.dumps({"error": message, "kind": type(error).__name__, "exit_code": code}))
    Console(stderr=True).print(f"[red]error:[/red] {escape(message)}", highlight=False, soft_wrap=True)
    raise typer.Exit(code) from error


def _plain(value: object) -> str:
    """Paths and the like in JSON."""
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} has no place in JSON")
