"""A group of options: what typer sees, and what the function gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from qdq.cli.option_groups import with_groups


@dataclass(frozen=True)
class Size:
    """Two options."""

    rows: Annotated[int, typer.Option("--rows", metavar="N", help="How many rows.")] = 2
    wide: Annotated[bool, typer.Option("--wide/--narrow")] = False


SMALL = Size()


def draw(name: str, size: Size = SMALL, count: int = 1) -> None:
    """Draw something."""
    print((name, size, count))


def run(*arguments: str) -> str:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(with_groups(draw))
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False).output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a"], ("a", Size(2, wide=False), 1)),
        (["a", "--rows", "5", "--wide", "--count", "3"], ("a", Size(5, wide=True), 3)),
    ],
    ids=["defaults", "every option"],
)
def test_the_function_gets_an_instance_of_the_group(arguments: list[str], expected: tuple[str, Size, int]) -> None:
    assert run(*arguments) == f"{expected}\n"


def test_the_help_has_the_options_of_the_group_in_its_place() -> None:
    shown = run("--help")
    assert "Draw something." in shown
    assert "How many rows." in shown
    assert shown.index("--rows") < shown.index("--wide") < shown.index("--count")


def test_a_value_that_the_group_refuses_is_a_usage_error() -> None:
    assert "Invalid value for '--rows'" in run("a", "--rows", "many")
