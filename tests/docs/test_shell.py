"""Every shell block is parsed by the commands themselves, and so is what prose says of commands, options and names."""

from __future__ import annotations

import importlib
import re
import shlex
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pytest
import typer
from typer.main import get_command

from qdq.cli.main import app
from qdq.recipes.recipe import presets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

ROOT = Path(__file__).resolve().parents[2]

# Programs of others: their options are theirs.
OTHERS = ("curl", "pre-commit", "git", "cd")

# Options in prose that belong to programs of others.
OPTIONS_OF_OTHERS = {"--do_calib", "--calib-batch", "--tensorrt", "--atol"} | {
    f"--{isa}" for isa in ("arm64", "avx2", "avx512", "avx512_vnni")
}


class ShellBlock(Protocol):
    """A block of shell; see ``conftest.py``."""

    language: str
    text: str


class Wrong(Exception):
    """A command that would not run as it is written."""


@dataclass(frozen=True)
class Command:
    """A command line of a block."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.words)


def commands_of(language: str, text: str) -> Iterator[Command]:
    """Yield the commands of a block: all lines of ``shell``, what follows the prompt of ``console``."""
    joined = text.replace("\\\n", " ")
    prompt = "$ " if language == "console" else ""
    for line in joined.splitlines():
        if not line.startswith(prompt):
            continue
        words = shlex.split(line.removeprefix(prompt), comments=True)
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # the environment of the command
            words.pop(0)
        if words:
            yield Command(tuple(words))


def check(command: Command) -> None:
    """Raise if a command has a mistake that can be seen without running it.

    Raises:
        Wrong: The program, an option, an extra, a target of make or a file does not exist.
    """
    program, *arguments = command.words
    if program == "qdq":
        check_qdq(arguments)
    elif program in ("torchrun", "accelerate", "python"):
        module = arguments.index("-m") + 1 if "-m" in arguments else None
        if module is None:
            check_files([word for word in arguments if word.endswith(".py")])
        elif arguments[module] == "qdq":
            check_qdq(arguments[module + 1 :])
        else:
            check_files([word for word in arguments if word.endswith(".py")])
    elif program == "make":
        check_make(arguments)
    elif program == "pip":
        check_pip(arguments)
    elif program not in OTHERS:
        raise Wrong(f"no program {program!r} is known to this test")


@cache
def command_tree() -> Any:
    return get_command(app)


def check_qdq(arguments: list[str]) -> None:
    """Parse a command line of ``qdq`` with its own options, running nothing."""
    command, rest = command_tree(), list(arguments)
    context = command.context_class(command, info_name="qdq", **command.context_settings)
    if rest in (["--version"], ["--help"]):
        return
    while hasattr(command, "commands"):
        name = rest.pop(0) if rest else ""
        if name not in command.commands:
            raise Wrong(f"no command {name!r}: there are {', '.join(command.commands)}")
        command = command.commands[name]
        if hasattr(command, "commands"):
            context = command.context_class(command, info_name=name, parent=context, **command.context_settings)
    if rest == ["--help"]:
        return
    try:
        parsed = command.make_context(command.name, rest, parent=context)
    except typer.Exit:
        return
    except Exception as error:  # what click calls a usage error, whichever package it is from
        raise Wrong(error.format_message() if hasattr(error, "format_message") else str(error)) from error
    for parameter in command.params:
        check_value(parameter, parsed.params.get(parameter.name))


def check_value(parameter: Any, value: Any) -> None:
    """Check a value against the placeholder of its option: ``max|mse`` names all there are."""
    if value is None or value == parameter.default:
        return
    choices = (parameter.metavar or "").split("|")
    for one in value if isinstance(value, list | tuple) else [value]:
        if len(choices) > 1 and all(re.fullmatch(r"[a-z-]+", choice) for choice in choices) and one not in choices:
            raise Wrong(f"{parameter.opts[0]} {one}: it must be one of {', '.join(choices)}")
        if "--recipe" in parameter.opts and one not in presets() and not str(one).endswith(".yaml"):
            raise Wrong(f"--recipe {one}: neither a preset nor a YAML file")


def check_make(arguments: list[str]) -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in arguments:
        name, assigns, _ = word.partition("=")
        pattern = rf"^{name} \?=" if assigns else rf"^{name}:.*## "
        if not re.search(pattern, text, flags=re.MULTILINE):
            raise Wrong(f"the Makefile has no {'variable' if assigns else 'target'} {name}")


def check_pip(arguments: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert arguments[0] == "install", "only installing is documented"
    for word in arguments[1:]:
        found = re.fullmatch(r"(?:qdq|\.)\[([\w,-]+)\]", word)
        for extra in found[1].split(",") if found else ():
            if extra not in extras:
                raise Wrong(f"no extra {extra!r}: there are {', '.join(extras)}")


def check_files(paths: list[str]) -> None:
    for path in paths:
        if not (ROOT / path).is_file():
            raise Wrong(f"no file {path}")


def test_shell_block(shell_block: ShellBlock) -> None:
    commands = list(commands_of(shell_block.language, shell_block.text))
    assert commands, "a block of shell without a command"
    for command in commands:
        try:
            check(command)
        except Wrong as error:
            pytest.fail(f"{shell_block}: {command}: {error}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("qdq callibrate -m model/", "no command 'callibrate'"),
        ("qdq calibrate -m model/ -o out/ --calibration-data x", "No such option"),
        ("qdq calibrate -o out/", "Missing option"),
        ("qdq calibrate -m model/ -o out/ --calibrator maximum", "must be one of max"),
        ("qdq calibrate -m model/ -o out/ --recipe tensort", "neither a preset"),
        ("qdq calibrate -m model/ -o out/ --num-samples many", "Invalid value for '--num-samples'"),
        ("qdq realm ask question", "no command 'ask'"),
        ("torchrun --nproc-per-node 2 -m qdq realm index -m model/", "Missing option"),
        ("make everything", "no target everything"),
        ("make test THREADS=2", "no variable THREADS"),
        ("pip install 'qdq[everything]'", "no extra 'everything'"),
        ("python tools/nothing.py", "no file tools/nothing.py"),
        ("qdk calibrate", "no program 'qdk'"),
    ],
)
def test_a_mistake_is_found(line: str, message: str) -> None:
    (command,) = commands_of("shell", line)
    with pytest.raises(Wrong, match=re.escape(message)):
        check(command)


@pytest.mark.parametrize(
    "line",
    [
        "qdq --version",
        "qdq calibrate --help",
        "qdq calibrate -m model/ -o out/ --calib_data sentences.txt  # a comment",
        "QDQ_DATA_DIR=data make test EXTRAS=tensorrt-rtx",
        "pip install -c constraints.txt -e '.[dev,docs]'",
    ],
)
def test_what_is_right_passes(line: str) -> None:
    (command,) = commands_of("shell", line)
    check(command)


def test_examples_in_help(reference: ModuleType) -> None:
    """What a command's own help shows as an example."""
    examples = re.findall(r"^```shell\n(.*?)^```$", reference.commands(), flags=re.MULTILINE | re.DOTALL)
    assert len(examples) > 8
    for example in examples:
        for command in commands_of("shell", example.replace("...", "")):
            check(command)


# ---------------------------------------------------------------------------------------------------------------------
# Code in prose

SPANS = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
FILE = re.compile(r"(?:qdq|calibration|exporters|tests|tools|docs)/[\w./-]+")
NAME = re.compile(r"(?:qdq|calibration|exporters)(?:\.[A-Za-z_]\w*)+")


@cache
def known_options() -> frozenset[str]:
    def of(command: Any) -> Iterator[str]:
        for child in getattr(command, "commands", {}).values():
            yield from of(child)
        for parameter in command.params:
            yield from (*parameter.opts, *parameter.secondary_opts)

    return frozenset(name for name in of(command_tree()) if name.startswith("--")) | OPTIONS_OF_OTHERS | {"--help"}


def prose_of(page: Path) -> str:
    """The text of a page without its blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def test_prose_names_what_exists(page: Path) -> None:
    """Commands, options, names of Python and files in prose."""
    for span in SPANS.findall(prose_of(page)):
        words = span.split()
        if words[0] == "qdq" and len(words) > 1 and not words[1].startswith("-"):
            assert words[1] in command_tree().commands, span
        for word in words:
            if re.fullmatch(r"--[a-z][\w-]*(=.*)?", word):
                name = word.partition("=")[0]
                assert {name, name.replace("_", "-")} & known_options(), f"no command has the option {word}"
        if NAME.fullmatch(span):
            assert exists(span), f"there is no {span}"
        if (
            re.fullmatch(r"(?:qdq|calibration|exporters|tests|tools|docs)/[\w./-]+", span)
            and page.name != "CHANGELOG.md"
        ):
            assert (ROOT / span).exists(), f"there is no {span}"


def exists(name: str) -> bool:
    """Tell whether a dotted name is a module, or an attribute of one."""
    # The documented spellings of two packages that have their own names.
    name = re.sub(r"^qdq\.(?=(?:calibration|exporters)\b)", "", name)
    module, *attributes = name.split(".")
    value: Any = importlib.import_module(module)
    for attribute in attributes:
        module = f"{module}.{attribute}"
        if not hasattr(value, attribute):
            try:
                importlib.import_module(module)
            except ImportError:
                return False
        value = getattr(value, attribute)
    return True
