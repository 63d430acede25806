"""A Sphinx extension that writes the reference pages from the code.

A page asks for generated text with a comment on a line of its own, which is replaced when Sphinx reads the page:

    <!-- generated: commands -->           every command of ``qdq`` with its arguments and options
    <!-- generated: names of MODULE -->    every name in ``MODULE.__all__``, documented by its docstring
    <!-- generated: presets -->            every preset with the comment at the head of its file
    <!-- generated: fields -->             every field of ``config.json``, and what is done with it
"""

from __future__ import annotations

import importlib
import inspect
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from types import ModuleType

    from sphinx.application import Sphinx

__all__ = ["commands", "expanded", "fields", "names_of", "presets", "setup"]

_REQUEST = re.compile(r"^<!-- generated: (?P<what>.+?) -->$", flags=re.MULTILINE)
_EXAMPLE = re.compile(r"^Examples?:\s+(?P<lines>.+)$", flags=re.MULTILINE)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the extension with Sphinx."""
    app.connect("source-read", lambda _app, _name, source: source.__setitem__(0, expanded(source[0])))
    return {"parallel_read_safe": True}


def expanded(page: str) -> str:
    """Return the Markdown of a page with every request replaced by what it asks for."""
    return _REQUEST.sub(lambda request: _generated(request["what"]), page)


def _generated(what: str) -> str:
    if what == "commands":
        return commands()
    if what == "presets":
        return presets()
    if what == "fields":
        return fields()
    if what.startswith("names of "):
        return names_of(what.removeprefix("names of "))
    raise ValueError(f"nothing is known about how to generate {what!r}")


# ---------------------------------------------------------------------------------------------------------------------
# Commands


def commands() -> str:
    """Return a section for every command, in the order of ``qdq --help``; what all of them accept comes first."""
    from typer.main import get_command

    from qdq.cli.main import app

    leaves = list(_leaves(get_command(app), "qdq"))
    shared = set.intersection(*({_row(option) for option in _options(command)} for _, command in leaves))
    first = [_row(option) for option in _options(leaves[0][1]) if _row(option) in shared]
    common = "\n".join(["## Options of every command", "", *_table("option", first)])
    return "\n\n".join([common, *(_section(name, command, shared) for name, command in leaves)])


def _leaves(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield the commands that do something, with their full names: groups only hold others."""
    # Newer releases of typer carry a click of their own, so the kind is recognized by its attribute, not by its class.
    if not hasattr(command, "commands"):
        yield name, command
        return
    for own, child in command.commands.items():
        if not child.hidden:
            yield from _leaves(child, f"{name} {own}")


def _options(command: Any) -> list[Any]:
    return [parameter for parameter in command.params if parameter.param_type_name == "option" and not parameter.hidden]


def _section(name: str, command: Any, shared: Collection[str]) -> str:
    arguments = [parameter for parameter in command.params if parameter.param_type_name == "argument"]
    usage = " ".join([name, "[OPTIONS]", *(_placeholder(argument) for argument in arguments)])
    lines = [f"## {name}", "", "```text", usage, "```", "", _help_text(command.help or "")]
    if arguments:
        lines += ["", *_table("argument", map(_row, arguments))]
    panels: dict[str, list[str]] = {}
    for option in _options(command):
        if _row(option) not in shared:
            panels.setdefault(getattr(option, "rich_help_panel", None) or "", []).append(_row(option))
    for panel, rows in panels.items():
        lines += ["", *([f"**{panel}**", ""] if panel else []), *_table("option", rows)]
    return "\n".join(lines)


def _placeholder(parameter: Any) -> str:
    """Return what stands for the value in the usage; flags, which have an empty placeholder, have no value."""
    return parameter.name.upper() if parameter.metavar is None else parameter.metavar


def _table(kind: str, rows: Iterable[str]) -> list[str]:
    return [f"| {kind} | meaning |", "|---|---|", *rows]


def _row(parameter: Any) -> str:
    return f"| {_spelling(parameter)} | {_meaning(parameter)} |"


def _spelling(parameter: Any) -> str:
    """Return the names of a parameter, each in code, with the placeholder of its value."""
    if parameter.param_type_name == "argument":
        return _code(_placeholder(parameter))
    value = "" if parameter.is_flag or parameter.count else _placeholder(parameter)
    return ", ".join(_code(f"{name} {value}".strip()) for name in (*parameter.opts, *parameter.secondary_opts))


def _meaning(parameter: Any) -> str:
    text = _escaped(" ".join((parameter.help or "").split()))
    if parameter.required:
        return f"{text} *Required.*"
    default = parameter.default
    if parameter.param_type_name == "argument" or default is None or default is False or parameter.count:
        return text
    if callable(default) or default in ("", [], ()):
        return text
    return f"{text} Default: {_code(str(default))}."


def _help_text(text: str) -> str:
    """Return the help of a command in Markdown, with its examples as a block."""
    found = [line.strip() for example in _EXAMPLE.finditer(text) for line in example["lines"].split("; ")]
    prose = "\n\n".join(_escaped(" ".join(part.split())) for part in _EXAMPLE.sub("", text).split("\n\n"))
    return "\n".join([prose.strip(), *(["", "```shell", *found, "```"] if found else [])])


def _code(text: str) -> str:
    return "`" + text.replace("|", r"\|") + "`"  # the cells of a table end at a bar, even inside of code


def _escaped(text: str) -> str:
    """Return text that Markdown shows as it is; what stands between backticks stays code."""
    pieces = text.split("`")
    if len(pieces) % 2 == 0:
        pieces = [text]
    plain = [re.sub(r"([\\`*_<>\[\]|#])", r"\\\1", piece) for piece in pieces[::2]]
    code = [_code(piece) for piece in pieces[1::2]]
    return "".join(a + b for a, b in zip(plain, [*code, ""], strict=True))


# ---------------------------------------------------------------------------------------------------------------------
# Names


def names_of(module: str) -> str:
    """Return a directive of autodoc for every public name of a module.

    What the facade ``qdq`` or a package of its own offers as well is documented there, once; elsewhere stands a link.
    """
    path, found = _module(module)
    links, lines = [], ["```{eval-rst}"]
    for name in found.__all__:
        value = getattr(found, name)
        if owner := _owner(found, name, value):
            links.append(f"{{py:obj}}`{owner}.{name}`")
        else:
            lines += [f".. {_directive(value)}:: {path}.{name}", ""]
    head = [f"Documented above: {', '.join(links)}.", ""] if links else []
    return "\n".join([*head, *lines, "```"])


def _owner(found: ModuleType, name: str, value: object) -> str | None:
    """Return the module before ``found`` in the reference that documents a name; None if there is none."""
    for facade in ("qdq", "qdq.calibration", "qdq.exporters"):
        path, module = _module(facade)
        if found.__name__ in (facade, facade.removeprefix("qdq.")):
            return None
        if name in module.__all__ and getattr(module, name) is value:
            return path
    return None


def _module(path: str) -> tuple[str, ModuleType]:
    """Return a module with the path that reaches it: ``qdq.calibration`` may be called ``calibration`` alone."""
    try:
        return path, importlib.import_module(path)
    except ModuleNotFoundError:
        path = path.removeprefix("qdq.")
        return path, importlib.import_module(path)


def _directive(value: object) -> str:
    if inspect.isclass(value):
        return "autoexception" if issubclass(value, BaseException) else "autoclass"
    return "autofunction" if inspect.isroutine(value) else "autodata"


# ---------------------------------------------------------------------------------------------------------------------
# Presets


def presets() -> str:
    """Return a definition for every preset: its name, and the comment at the head of its file."""
    from qdq.recipes.recipe import presets as files

    entries = []
    for name, path in files().items():
        text = path.read_text(encoding="utf-8")
        comment = [line.removeprefix("#").strip() for line in text.splitlines() if line.startswith("#")]
        prose = " ".join(line for line in comment if "$schema" not in line)
        entries.append(f"`{name}`\n: {_escaped(prose)}")
    return "\n\n".join(entries)


# ---------------------------------------------------------------------------------------------------------------------
# Fields


def fields() -> str:
    """Return what is done with every field of ``config.json``: those that families follow, and the others."""
    from qdq.models.config_fields import CONFIG_FIELDS
    from qdq.models.registry import FAMILIES, fields_of

    by_family = {name: fields_of(family.config) for name, family in FAMILIES.items()}
    common = set.intersection(*by_family.values())
    lines = [f"Every family follows {_names(common)}.", ""]
    lines += [
        f"- {_code(name)} also follows {_names(own - common)}." for name, own in by_family.items() if own > common
    ]
    lines += ["", "| field | reading | writing | why |", "|---|---|---|---|"]
    for entry in CONFIG_FIELDS:
        writing = "written" if entry.written else "left out"
        lines.append(f"| {_names(entry.names)} | {entry.reading} | {writing} | {_escaped(entry.why)} |")
    return "\n".join(lines)


def _names(names: Iterable[str]) -> str:
    return ", ".join(map(_code, sorted(names)))
