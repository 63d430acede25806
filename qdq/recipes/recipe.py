"""A recipe: ordered rules that say which slots are quantized, and how.

    name: linear
    specs:
      activation: {bits: 8, signed: true, symmetric: true}
      weight: {bits: 8, granularity: per-axis(0)}
    rules:
      - {module: "encoder.*", kind: linear, slot: input, spec: activation}
      - {module: "encoder.*", kind: linear, slot: weight, spec: weight}
      - {module: "encoder.layers.0.*", slot: "*", spec: off}

A rule names modules by a shell pattern, optionally of one kind or a list of them (``linear``, ``embedding``,
``matmul``, ``add``), and a slot (``input``, ``weight``, ``other``, or ``*``). The last rule that matches a slot
decides; a slot that no rule matches stays float. A rule that matches nothing is an error, unless it says
``optional: true``: not every model has a head with a decoder. ``include`` and ``exclude`` patterns have the last word.
``refinement: {smoothing: 0.9, shift: true, bias_correction: true, rounding: gptq}`` says what calibration does beyond
finding ranges (:class:`qdq.recipes.refinement.Refinement`).
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.errors import RecipeError, StorageError, describe_problems
from qdq.quantization.slot import KINDS, SLOTS, Slot
from qdq.quantization.spec import QuantSpec
from qdq.recipes.refinement import Refinement
from qdq.recipes.yaml_reader import Items, Lines, read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["Recipe", "Rule", "load_recipe", "presets"]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Gives ``spec`` (None: stay float) to the slots that match; an ``optional`` one may match none."""

    module: str
    slot: str
    spec: QuantSpec | None
    kind: str | tuple[str, ...] | None = None
    optional: bool = False

    def matches(self, slot: Slot) -> bool:
        """Whether the rule speaks of ``slot``."""
        kinds = self.kind if isinstance(self.kind, tuple) else (self.kind,)
        return (
            (self.kind is None or slot.kind in kinds)
            and self.slot in ("*", slot.name)
            and fnmatchcase(slot.module, self.module)
        )

    def __str__(self) -> str:
        kinds = f"[{', '.join(self.kind)}]" if isinstance(self.kind, tuple) else self.kind
        kind = "" if self.kind is None else f"kind: {kinds}, "
        return f"{{module: {self.module!r}, {kind}slot: {self.slot!r}, spec: {self.spec or 'off'}}}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values; the spec stands in the rule itself."""
        spec = "off" if self.spec is None else self.spec.to_dict()
        kind = {} if self.kind is None else {"kind": list(self.kind) if isinstance(self.kind, tuple) else self.kind}
        optional = {"optional": True} if self.optional else {}
        return {"module": self.module, **kind, "slot": self.slot, "spec": spec, **optional}


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Ordered rules with a name; see the module's docstring."""

    name: str
    rules: tuple[Rule, ...]
    include: tuple[str, ...] = field(default=())
    exclude: tuple[str, ...] = field(default=())
    refinement: Refinement = Refinement()  # noqa: RUF009 (frozen)

    def restrict(self, *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Recipe:
        """The same rules, for slots that match one of ``include`` (if any) and none of ``exclude``."""
        return replace(self, include=(*self.include, *include), exclude=(*self.exclude, *exclude))

    def assign(self, slots: Iterable[Slot]) -> dict[Slot, QuantSpec | None]:
        """The spec of every slot, None for those that stay float.

        Raises:
            RecipeError: for rules and patterns that match no slot at all, all of them at once: they are typing errors.
        """
        slots = list(slots)
        if not slots:
            raise RecipeError(f"recipe {self.name!r}: the model has no slots")
        problems = [
            f"rule {rule} matches nothing; {_hint(rule.module, slots)}"
            for rule in self.rules
            if not rule.optional and not any(map(rule.matches, slots))
        ]
        for option in ("include", "exclude"):
            for pattern in getattr(self, option):
                if not any(_is_named(slot, (pattern,)) for slot in slots):
                    problems.append(f"{option} pattern {pattern!r} matches nothing; {_hint(pattern, slots)}")
        if problems:
            raise RecipeError(describe_problems(f"recipe {self.name!r}", problems, limit=len(problems)))
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
            **({"refinement": self.refinement.to_dict()} if self.refinement else {}),
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


def _hint(pattern: str, slots: Sequence[Slot]) -> str:
    """What somebody who wrote ``pattern`` may have meant.

    1. Modules have this name, but not this kind or slot: which they have.
    2. The names most like it, of the first layer where layers repeat.
    3. Nothing is like it: how names begin.
    """
    matched = [slot for slot in slots if fnmatchcase(slot.module, pattern)]
    if matched:  # case 1
        kinds: dict[str, list[str]] = {}
        for slot in matched:
            if slot.name not in kinds.setdefault(slot.kind, []):
                kinds[slot.kind].append(slot.name)
        return "what it names has " + "; ".join(f"kind {kind}: {', '.join(names)}" for kind, names in kinds.items())
    modules = list(dict.fromkeys(slot.module for slot in slots))
    first = [name for name in modules if not re.search(r"\blayers\.[1-9]", name)] or modules
    # Patterns often name a part of the way, so that parts are compared, too.
    parts: dict[str, str] = {}
    for name in first:
        words = name.split(".")
        for begin in range(len(words)):
            for end in range(len(words), begin, -1):
                parts.setdefault(".".join(words[begin:end]), name)
    written = re.sub(r"\[.*?\]|\d+", "0", pattern).strip("*.?").replace("*", "0")[:200]
    near = dict.fromkeys(parts[part] for part in get_close_matches(written, parts, n=12, cutoff=0.6))
    if near:  # case 2
        return f"names nearest to it: {', '.join(list(near)[:3])}"
    layered = [name for name in first if ".layers.0." in name]
    return f"names are like {', '.join(dict.fromkeys([first[0], *layered[:2], first[-1]]))}"  # case 3


def presets() -> dict[str, Path]:
    """The recipes that ship with the package, by name."""
    folder = Path(str(resources.files("qdq.recipes") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(name_or_path: str | Path) -> Recipe:
    """A preset by its name, or a YAML file by its path.

    Raises:
        RecipeError: when there is no such preset or file, or the file has mistakes (all of them, with their lines).
        StorageError: when the file cannot be read.
    """
    known = presets()
    path = known.get(str(name_or_path), Path(name_or_path))
    try:
        found = path.is_file()
    except PermissionError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except (OSError, ValueError):  # no name that a file could have
        found = False
    if not found:
        near = get_close_matches(str(name_or_path), known, n=1)
        tip = f"; did you mean {near[0]}?" if near else ""
        raise RecipeError(
            f"no recipe {str(name_or_path)!r}: neither a file nor one of the presets {', '.join(known)}{tip}"
        )
    values, problems = read_yaml(path)
    return _Reader(str(path), problems).read(values)


class _Brief(reprlib.Repr):
    """Shows a value in a line: aliases can make a short file stand for a huge value."""

    repr_Lines = reprlib.Repr.repr_dict  # noqa: N815 (named after the classes)
    repr_Items = reprlib.Repr.repr_list  # noqa: N815


_brief = _Brief()
_brief.maxlevel, _brief.maxstring, _brief.maxlong, _brief.maxother = 3, 80, 80, 80


class _Reader:
    """Turns plain values into a recipe and gathers the mistakes on the way, by their lines where there are lines."""

    def __init__(self, source: str, problems: Sequence[tuple[int, str]] = ()) -> None:
        self.source = source
        self.problems: list[tuple[int | None, str]] = list(problems)

    def read(self, values: Any) -> Recipe:
        if not isinstance(values, Mapping):
            self._problem(values, "a recipe is a mapping with the keys name, specs, rules")
            raise self._error()
        self._check_keys(values, ("name", "specs", "rules", "include", "exclude", "refinement"), where="recipe")
        name = values.get("name")
        if "name" not in values:
            self._problem(values, "name is missing")
        elif not isinstance(name, str) or not name:
            self._problem(values, f"name is {_brief.repr(name)}, must be text", key="name")
        specs = self._mapping(values, "specs")
        named = {key: self._spec(spec, str(key), within=specs, key=key) for key, spec in specs.items()}
        for key in named:
            if not isinstance(key, str) or key == "off":
                wrong = "stands for no spec already" if key == "off" else "must be text"
                self._problem(specs, f"the name of a spec is {key!r}, which {wrong}", key=key)
        rules = values.get("rules")
        if not isinstance(rules, list) or not rules:
            problem = "is missing" if "rules" not in values else "is not a list with at least one rule"
            self._problem(values, f"rules {problem}", key="rules")
            rules = []
        read = [self._rule(rule, named, within=rules, index=index) for index, rule in enumerate(rules)]
        patterns = {key: self._patterns(values, key) for key in ("include", "exclude")}
        refinement = self._refinement(values)
        if self.problems:
            raise self._error()
        rules = tuple(rule for rule in read if rule)
        return Recipe(name=str(name), rules=rules, **patterns, refinement=Refinement(**refinement))

    def _error(self) -> RecipeError:
        problems = dict.fromkeys(self.problems)  # what several aliases name is wrong once
        ordered = sorted(problems, key=lambda problem: problem[0] or 0)
        lines = [text if line is None else f"line {line}: {text}" for line, text in ordered]
        return RecipeError(describe_problems(self.source, lines, limit=len(lines)))

    def _rule(
        self, values: Any, named: Mapping[Any, QuantSpec | None], *, within: list[Any], index: int
    ) -> Rule | None:
        if not isinstance(values, Mapping):
            self._problem(within, f"rule {_brief.repr(values)} is not a mapping", key=index)
            return None
        before = len(self.problems)
        self._check_keys(values, ("module", "kind", "slot", "spec", "optional"), where="rule")
        for key in ("module", "slot", "spec"):
            if key not in values:
                self._problem(values, f"a rule needs the key {key!r}")
        if not isinstance(values.get("module", ""), str):
            self._problem(values, f"module is {_brief.repr(values['module'])}, must be a pattern", key="module")
        if values.get("slot", "*") not in (*SLOTS, "*"):
            wrong = _brief.repr(values["slot"])
            self._problem(values, f"slot is {wrong}, must be one of {', '.join((*SLOTS, '*'))}", key="slot")
        kind = values.get("kind", KINDS[0])
        if not (kind and all(one in KINDS for one in kind) if isinstance(kind, list) else kind in KINDS):
            text = f"kind is {_brief.repr(kind)}, must be one of {', '.join(KINDS)}, or a list of them"
            self._problem(values, text, key="kind")
        optional = values.get("optional", False)
        if not isinstance(optional, bool):
            self._problem(values, f"optional is {_brief.repr(optional)}, must be true or false", key="optional")
        spec = values.get("spec", "off")
        resolved = None
        if isinstance(spec, Mapping):
            resolved = self._spec(spec, "spec", within=values, key="spec")
        elif isinstance(spec, str) and spec in named:
            resolved = named[spec]
        elif spec != "off":
            names = ", ".join(["off", *map(str, named)])
            self._problem(values, f"spec is {_brief.repr(spec)}, must be one of {names}, or a mapping", key="spec")
        if len(self.problems) > before:
            return None
        kind = values.get("kind")
        kind = tuple(kind) if isinstance(kind, list) else kind
        return Rule(module=values["module"], kind=kind, slot=values["slot"], spec=resolved, optional=optional)

    def _spec(self, values: Any, name: str, *, within: Mapping[Any, Any], key: Any) -> QuantSpec | None:
        if not isinstance(values, Mapping):
            self._problem(within, f"spec {name!r} is {_brief.repr(values)}, must be a mapping", key=key)
            return None
        nested = [setting for setting, value in values.items() if isinstance(value, list | Mapping)]
        for setting in nested:
            text = f"{name}: {setting} is {_brief.repr(values[setting])}, must be a single value"
            self._problem(values, text, key=setting)
        problems = QuantSpec.problems_in({setting: value for setting, value in values.items() if setting not in nested})
        for problem in problems:
            # A problem begins with the setting that it is about.
            about = (s for s in values if problem.startswith((f"{s} ", f"unknown key {s!r} ")))
            self._problem(values, f"{name}: {problem}", key=next(about, None))
        return None if problems or nested else QuantSpec.from_dict(values)

    def _refinement(self, values: Mapping[Any, Any]) -> dict[str, Any]:
        settings = self._mapping(values, "refinement")
        for problem in Refinement.problems_in(settings):
            about = (key for key in settings if problem.startswith((f"{key} ", f"unknown key {key!r} ")))
            self._problem(settings, f"refinement: {problem}", key=next(about, None))
        return dict(settings)

    def _mapping(self, values: Mapping[Any, Any], key: str) -> Mapping[Any, Any]:
        value = values.get(key, {})
        if isinstance(value, Mapping):
            return value
        self._problem(values, f"{key} is not a mapping", key=key)
        return {}

    def _patterns(self, values: Mapping[Any, Any], key: str) -> tuple[str, ...]:
        value = values.get(key, [])
        if not isinstance(value, list):
            self._problem(values, f"{key} is not a list of patterns", key=key)
            return ()
        for index, item in enumerate(value):
            if not isinstance(item, str):
                self._problem(value, f"{key} has {_brief.repr(item)}, must be a pattern", key=index)
        return tuple(value)

    def _check_keys(self, values: Mapping[Any, Any], known: tuple[str, ...], *, where: str) -> None:
        for key in values:
            if key not in known:
                near = get_close_matches(str(key), known, n=1)
                tip = f"; did you mean {near[0]!r}?" if near else f" (known: {', '.join(known)})"
                self._problem(values, f"unknown key {key!r} in a {where}{tip}", key=key)

    def _problem(self, values: Any, text: str, *, key: Any = None) -> None:
        """Note a mistake in ``values``, with the line of ``key`` or else of the whole."""
        line = None
        if isinstance(values, Lines):
            line = values.of.get(key, values.own)
        elif isinstance(values, Items):
            line = values.of[key] if isinstance(key, int) else None
        self.problems.append((line, text))
