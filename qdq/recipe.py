"""A recipe: ordered rules that say which slots are quantized, and how.

    name: linear
    specs:
      activation: {bits: 8, signed: true, symmetric: true}
      weight: {bits: 8, granularity: per-axis(0)}
    rules:
      - {module: "encoder.*", kind: linear, slot: input, spec: activation}
      - {module: "encoder.*", kind: linear, slot: weight, spec: weight}
      - {module: "encoder.layers.0.*", slot: "*", spec: off}

A rule names modules by a shell pattern, optionally of one kind (``linear``, ``embedding``, ``matmul``, ``add``), and a
slot (``input``, ``weight``, ``other``, or ``*``). The last rule that matches a slot decides; a slot that no rule
matches stays float. ``include`` and ``exclude`` patterns have the last word.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from qdq.errors import RecipeError, StorageError, describe_faults
from qdq.spec import QuantSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Recipe", "Rule", "Slot", "load_recipe", "presets"]

KINDS = ("linear", "embedding", "matmul", "add")
SLOTS = ("input", "weight", "other")


@dataclass(frozen=True)
class Slot:
    """The address of one slot: ``encoder.layers.0.attention.query``, ``linear``, ``input``."""

    module: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Gives ``spec`` (None: stay float) to the slots that match."""

    module: str
    slot: str
    spec: QuantSpec | None
    kind: str | None = None

    def matches(self, slot: Slot) -> bool:
        """Whether the rule speaks of ``slot``."""
        return (
            fnmatchcase(slot.module, self.module) and self.kind in (None, slot.kind) and self.slot in ("*", slot.name)
        )

    def __str__(self) -> str:
        kind = "" if self.kind is None else f"kind: {self.kind}, "
        return f"{{module: {self.module!r}, {kind}slot: {self.slot!r}, spec: {self.spec or 'off'}}}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the spec stands in the rule itself."""
        spec = "off" if self.spec is None else self.spec.to_dict()
        kind = {} if self.kind is None else {"kind": self.kind}
        return {"module": self.module, **kind, "slot": self.slot, "spec": spec}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Ordered rules with a name; see the module's docstring."""

    name: str
    rules: tuple[Rule, ...]
    include: tuple[str, ...] = field(default=())
    exclude: tuple[str, ...] = field(default=())

    def restrict(self, *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Recipe:
        """The same rules, for slots that match one of ``include`` (if any) and none of ``exclude``."""
        return replace(self, include=(*self.include, *include), exclude=(*self.exclude, *exclude))

    def assign(self, slots: Iterable[Slot]) -> dict[Slot, QuantSpec | None]:
        """The spec of every slot, None for those that stay float.

        Raises:
            RecipeError: for rules and patterns that match no slot at all, all of them at once: they are typing errors.
        """
        slots = list(slots)
        faults = [f"rule {rule} matches nothing" for rule in self.rules if not any(map(rule.matches, slots))]
        for option in ("include", "exclude"):
            for pattern in getattr(self, option):
                if not any(_is_named(slot, (pattern,)) for slot in slots):
                    faults.append(f"{option} pattern {pattern!r} matches nothing")
        if faults:
            modules = sorted({slot.module for slot in slots})
            faults.append(
                f"modules are named like {', '.join(modules[:3])} ... {modules[-1]}" if modules else "no slots"
            )
            raise RecipeError(describe_faults(f"recipe {self.name!r}", faults))
        return {slot: self._spec(slot) for slot in slots}

    def _spec(self, slot: Slot) -> QuantSpec | None:
        if (self.include and not _is_named(slot, self.include)) or _is_named(slot, self.exclude):
            return None
        return next((rule.spec for rule in reversed(self.rules) if rule.matches(slot)), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and YAML; :meth:`from_dict` reads them back."""
        return {
            "name": self.name,
            "rules": [rule.to_dict() for rule in self.rules],
            "include": list(self.include),
            "exclude": list(self.exclude),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
        """Read the plain values of a recipe, as they stand in a YAML file.

        Raises:
            RecipeError: with all mistakes at once, each with its line where the values come from a file.
        """
        return _Reader(source).read(values)


def _is_named(slot: Slot, patterns: Iterable[str]) -> bool:
    """Users may name the module or the slot."""
    return any(fnmatchcase(slot.module, pattern) or fnmatchcase(str(slot), pattern) for pattern in patterns)


def presets() -> dict[str, Path]:
    """The recipes that ship with the package, by name."""
    folder = Path(str(resources.files("qdq") / "recipes"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A preset by its name, or a YAML file by its path.

    Raises:
        RecipeError: when there is no such preset or file, or the file has mistakes (all of them, with their lines).
        StorageError: when the file cannot be read.
    """
    known = presets()
    path = known.get(str(name_or_path), Path(name_or_path))
    if not path.is_file():
        raise RecipeError(f"no recipe {str(name_or_path)!r}: neither a file nor one of the presets {', '.join(known)}")
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_LineLoader)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error
    except (
        yaml.YAMLError,
        ValueError,
        RecursionError,
    ) as error:  # ValueError: not UTF-8, or a date that does not exist
        raise RecipeError(f"{path}: not a YAML file: {' '.join(str(error).split())}") from error
    return Recipe.from_dict(values, source=str(path))


class _Lines(dict[Any, Any]):
    """A mapping of a YAML file that knows its own line, those of its keys, and the keys that came more than once."""

    own: int
    of: Mapping[Any, int]
    repeated: Sequence[Any]


class _LineLoader(yaml.SafeLoader):
    """A safe loader whose mappings know their lines, and whose ``off`` is a word, not a boolean."""

    def construct_lines(self, node: yaml.MappingNode) -> _Lines:
        """The mapping of ``node``."""
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        mapping = _Lines(self.construct_mapping(node, deep=True))
        mapping.own = node.start_mark.line + 1
        mapping.of = {self.construct_object(key): key.start_mark.line + 1 for key, _ in node.value}
        mapping.repeated = sorted({key for key in keys if keys.count(key) > 1})
        return mapping


_LineLoader.add_constructor("tag:yaml.org,2002:map", _LineLoader.construct_lines)
_LineLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:bool"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
# YAML 1.2's booleans: true and false alone.
_LineLoader.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile("^(?:true|false)$"), list("tf"))


class _Reader:
    """Turns plain values into a recipe and gathers the mistakes on the way."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.faults: list[str] = []

    def read(self, values: Any) -> Recipe:
        if not isinstance(values, Mapping):
            raise RecipeError(f"{self.source}: a recipe is a mapping with the keys name, specs, rules")
        self._check_keys(values, ("name", "specs", "rules", "include", "exclude"), where="recipe")
        name = values.get("name")
        if "name" not in values:
            self._fault(values, "name is missing")
        elif not isinstance(name, str) or not name:
            self._fault(values, f"name is {name!r}, must be text", key="name")
        specs = self._mapping(values, "specs")
        named = {key: self._spec(spec, str(key), within=specs, key=key) for key, spec in specs.items()}
        rules = values.get("rules")
        if not isinstance(rules, list) or not rules:
            problem = "is missing" if "rules" not in values else "is not a list with at least one rule"
            self._fault(values, f"rules {problem}", key="rules")
            rules = []
        read = [self._rule(rule, named, within=values) for rule in rules]
        patterns = {key: self._patterns(values, key) for key in ("include", "exclude")}
        if self.faults:
            raise RecipeError(describe_faults(self.source, self.faults))
        return Recipe(name=str(name), rules=tuple(rule for rule in read if rule), **patterns)

    def _rule(self, values: Any, named: Mapping[Any, QuantSpec | None], *, within: Mapping[Any, Any]) -> Rule | None:
        if not isinstance(values, Mapping):
            self._fault(within, f"rule {values!r} is not a mapping", key="rules")
            return None
        before = len(self.faults)
        self._check_keys(values, ("module", "kind", "slot", "spec"), where="rule")
        for key, choices in (("kind", KINDS), ("slot", (*SLOTS, "*"))):
            if key in values and values[key] not in choices:
                self._fault(values, f"{key} is {values[key]!r}, must be one of {', '.join(choices)}", key=key)
        for key in ("module", "slot", "spec"):
            if key not in values:
                self._fault(values, f"a rule needs the key {key!r}")
        if not isinstance(values.get("module", ""), str):
            self._fault(values, f"module is {values['module']!r}, must be a pattern", key="module")
        spec = values.get("spec", "off")
        resolved = None
        if isinstance(spec, Mapping):
            resolved = self._spec(spec, "spec", within=values, key="spec")
        elif isinstance(spec, str) and spec in named:
            resolved = named[spec]
        elif spec != "off":
            names = ", ".join(["off", *map(str, named)])
            self._fault(values, f"spec is {spec!r}, must be one of {names}, or a mapping", key="spec")
        if len(self.faults) > before:
            return None
        return Rule(module=values["module"], kind=values.get("kind"), slot=values["slot"], spec=resolved)

    def _spec(self, values: Any, name: str, *, within: Mapping[Any, Any], key: Any) -> QuantSpec | None:
        if not isinstance(values, Mapping):
            self._fault(within, f"spec {name!r} is {values!r}, must be a mapping", key=key)
            return None
        self._check_repeated(values)
        faults = QuantSpec.faults_in(values)
        for fault in faults:
            self._fault(values, f"{name}: {fault}")
        return None if faults else QuantSpec.from_dict(values)

    def _mapping(self, values: Mapping[Any, Any], key: str) -> Mapping[Any, Any]:
        value = values.get(key, {})
        if isinstance(value, Mapping):
            self._check_repeated(value)
            return value
        self._fault(values, f"{key} is not a mapping", key=key)
        return {}

    def _patterns(self, values: Mapping[Any, Any], key: str) -> tuple[str, ...]:
        value = values.get(key, [])
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return tuple(value)
        self._fault(values, f"{key} is not a list of patterns", key=key)
        return ()

    def _check_keys(self, values: Mapping[Any, Any], known: tuple[str, ...], *, where: str) -> None:
        self._check_repeated(values)
        for key in values:
            if key not in known:
                self._fault(values, f"unknown key {key!r} in a {where} (known: {', '.join(known)})", key=key)

    def _check_repeated(self, values: Mapping[Any, Any]) -> None:
        for key in getattr(values, "repeated", ()):
            self._fault(values, f"the key {key!r} stands here more than once", key=key)

    def _fault(self, values: Mapping[Any, Any], text: str, *, key: Any = None) -> None:
        """Note a mistake in ``values``, with the line of ``key`` or else of the whole."""
        line = values.of.get(key, values.own) if isinstance(values, _Lines) else None
        self.faults.append(text if line is None else f"line {line}: {text}")
