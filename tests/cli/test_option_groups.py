"""A group of options: what typer sees, and what the function gets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import pytest
import typer
from typer.testing import CliRunner

from qdq.cli.option_groups import with_groups
from qdq.settings import check, flag, number, setting, whole

if TYPE_CHECKING:
    from pathlib import Path


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


@dataclass(frozen=True, kw_only=True)
class Search:
    beams: int = setting(1, "Number of beams.", whole(1), metavar="N")
    early: bool = setting(False, "Stop early.", flag())
    centred: bool | None = setting(None, "Centre them.", flag().or_none(), option="--centre/--no-centre")
    deep: int = setting(3, "Depth to search.", whole(1), panel="Depth")
    momentum: float = setting(0.1, "Not for the command line.", number(0), option=None)
    folder: Path | None = None  # its type is not there when the command is made

    def __post_init__(self) -> None:
        check(self, "settings of the search")


@dataclass(frozen=True)
class Output:
    name: str = setting("found", "Name of the file.", option="--output-name")


DEFAULT, FOUND = Search(), Output()


def find(
    name: str, search: Annotated[Search, "Searching"] = DEFAULT, output: Output = FOUND, momentum: int = 1
) -> None:
    """Find something."""
    print((name, search, output, momentum))


def run_find(*arguments: str) -> str:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(with_groups(find))
    return CliRunner().invoke(app, list(arguments), catch_exceptions=False).output


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["a"], ("a", Search(), Output(), 1)),
        (
            ["a", "--beams", "5", "--early", "--no-centre", "--deep", "2", "--output-name", "b", "--momentum", "9"],
            ("a", Search(beams=5, early=True, centred=False, deep=2), Output("b"), 9),
        ),
    ],
    ids=["defaults", "every option"],
)
def test_settings_of_the_library_become_options(
    arguments: list[str], expected: tuple[str, Search, Output, int]
) -> None:
    assert run_find(*arguments) == f"{expected}\n"


def test_help_metavar_and_panel_come_from_the_settings() -> None:
    shown = run_find("--help")
    assert "Number of beams." in shown
    assert shown.index("--beams") < shown.index("--early") < shown.index("--centre")
    assert shown.index("Searching") < shown.index("--beams")
    assert shown.index("Depth ") < shown.index("--deep"), "the panel of the setting itself"
    assert "Not for the command line." not in shown
    assert "--folder" not in shown


def test_the_rule_of_a_setting_refuses_a_value() -> None:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(with_groups(find))
    result = CliRunner().invoke(app, ["a", "--beams", "0"])
    assert "beams is 0, must be a whole number of at least 1" in str(result.exception)
