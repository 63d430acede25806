"""Read the YAML of a recipe as plain values that know their lines, and report all mistakes at once.

Only the core types of YAML 1.2 are read: text, whole numbers, numbers, ``true`` and ``false``, null, lists and
mappings. PyYAML reads YAML 1.1, in which ``off`` is false and ``010`` is eight; here ``off`` is a word, ``010`` is ten
and a date is text. Anchors, aliases and merge keys (``<<``) work as usual.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import yaml

from qdq.errors import RecipeError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

__all__ = ["UNREADABLE", "Items", "Lines", "read_yaml"]

MAX_BYTES = 250_000
"""A recipe with a rule for every slot of a large model has 100,000 bytes, so a larger file is not a recipe."""

_MERGE = "tag:yaml.org,2002:merge"


class Lines(dict[Any, Any]):
    """A mapping that knows its own line and those of its keys.

    Args:
        own: The line of the mapping.
    """

    def __init__(self, own: int) -> None:
        super().__init__()
        self.own = own
        self.of: dict[Any, int] = {}


class Items(list[Any]):
    """A list that knows the lines of its items."""

    def __init__(self) -> None:
        super().__init__()
        self.of: list[int] = []


class _Unreadable:
    def __repr__(self) -> str:
        return "unreadable"


UNREADABLE = _Unreadable()
"""Stands for a value that cannot be read and whose problem has been noted."""


def read_yaml(path: Path) -> tuple[Any, list[tuple[int, str]]]:
    """Return the values in a YAML file, and the mistakes with their lines.

    Raises:
        RecipeError: The file is not YAML.
        StorageError: The file cannot be read.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecipeError(f"{path}: not a YAML file of a recipe: it has more than {MAX_BYTES:,} bytes")
        root = yaml.compose(path.read_text(encoding="utf-8"), Loader=_Loader)
        reader = _Values()
        values = None if root is None else reader.of(root)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: not UTF-8
        raise RecipeError(f"{path}: not a YAML file: {_described(error)}") from error
    return values, reader.problems


def _described(error: Exception) -> str:
    """Return the line and the mistake, without the excerpts that YAML's own messages draw over several lines."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        context = f" {error.context}" if error.context else ""
        return f"line {error.problem_mark.line + 1}: {error.problem}{context}"
    return " ".join(str(error).split())


class _Loader(yaml.SafeLoader):
    """Composes the nodes of a document, and gives plain scalars the core types of YAML 1.2."""


_Loader.yaml_implicit_resolvers = {}
for _name, _pattern, _first in (
    ("null", r"~|null|", ["~", "n", ""]),
    ("bool", r"true|false", list("tf")),
    ("int", r"[-+]?[0-9]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.inf|\.nan", list("-+.0123456789")),
    ("merge", "<<", ["<"]),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_name}", re.compile(rf"(?:{_pattern})\Z"), _first)

_SCALARS: dict[str, Callable[[str], Any]] = {
    "tag:yaml.org,2002:str": str,
    "tag:yaml.org,2002:null": lambda text: None,  # noqa: ARG005 (every spelling is None)
    "tag:yaml.org,2002:bool": lambda text: {"true": True, "false": False}[text],
    "tag:yaml.org,2002:int": lambda text: int(text, 10),
    "tag:yaml.org,2002:float": lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan")),
}


class _Values:
    """Turns nodes into values. Aliases of a node share one value, so that a short file cannot expand to a huge one."""

    def __init__(self) -> None:
        self.problems: list[tuple[int, str]] = []
        self._done: dict[int, Any] = {}
        self._open: set[int] = set()

    def of(self, node: yaml.Node) -> Any:
        if id(node) in self._open:
            self._problem(node, "an alias stands inside what it refers to")
            return UNREADABLE
        if id(node) not in self._done:
            self._open.add(id(node))
            self._done[id(node)] = self._read(node)
            self._open.remove(id(node))
        return self._done[id(node)]

    def _read(self, node: yaml.Node) -> Any:
        tag = node.tag
        if isinstance(node, yaml.MappingNode) and tag == "tag:yaml.org,2002:map":
            return self._mapping(node)
        if isinstance(node, yaml.SequenceNode) and tag == "tag:yaml.org,2002:seq":
            items = Items()
            for item in node.value:
                items.append(self.of(item))
                items.of.append(_line(item))
            return items
        if isinstance(node, yaml.ScalarNode) and tag in _SCALARS:
            try:
                return _SCALARS[tag](node.value)
            except (ValueError, KeyError):
                self._problem(node, f"{node.value[:60]!r} is not a valid {tag.rpartition(':')[2]}")
                return UNREADABLE
        self._problem(node, f"the type {tag.replace('tag:yaml.org,2002:', '!!')} is not allowed in a recipe")
        return UNREADABLE

    def _mapping(self, node: yaml.MappingNode) -> Lines:
        own, merged = Lines(_line(node)), Lines(_line(node))
        for key_node, value_node in node.value:
            if key_node.tag == _MERGE:
                for other in self._merged(value_node):
                    _fill(merged, other)  # of several mappings to merge, the first one counts
                continue
            value = self.of(value_node)
            if not isinstance(key_node, yaml.ScalarNode):
                self._problem(key_node, "a key must be text")
                continue
            key = self.of(key_node)
            if key in own:
                self._problem(key_node, f"the key {key!r} is given more than once, first in line {own.of[key]}")
            else:
                own[key], own.of[key] = value, _line(key_node)
        _fill(own, merged)
        return own

    def _merged(self, node: yaml.Node) -> Iterator[Lines]:
        value = self.of(node)
        for other in value if isinstance(value, Items) else [value]:
            if isinstance(other, Lines):
                yield other
            else:
                self._problem(node, "what << merges must be a mapping, or a list of them")

    def _problem(self, node: yaml.Node, text: str) -> None:
        self.problems.append((_line(node), text))


def _fill(target: Lines, source: Lines) -> None:
    """Copy the keys that ``target`` does not have."""
    for key in source:
        if key not in target:
            target[key], target.of[key] = source[key], source.of[key]


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
