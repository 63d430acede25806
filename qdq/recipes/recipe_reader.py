"""Read plain values as the fields of a recipe, and report all mistakes at once with their lines."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from qdq.errors import RecipeError, describe_problems
from qdq.quantization.slot import KINDS, SLOTS
from qdq.quantization.spec import QuantSpec
from qdq.recipes.refinement import Refinement
from qdq.recipes.rule import Rule
from qdq.recipes.yaml_reader import Items, Lines

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["read_fields"]


def read_fields(values: Any, *, source: str, problems: Sequence[tuple[int, str]] = ()) -> dict[str, Any]:
    """Return the fields of the :class:`qdq.recipes.recipe.Recipe` that plain values describe.

    Args:
        values: A mapping, as it is in a YAML file.
        source: Where the values come from, for the message.
        problems: Mistakes that were found before, with their lines.

    Raises:
        RecipeError: With all mistakes at once, each with its line if the values come from a file.
    """
    return _Reader(source, problems).read(values)


class _Brief(reprlib.Repr):
    """Shows a value in one line. Aliases can make a short file stand for a huge value."""

    repr_Lines = reprlib.Repr.repr_dict  # noqa: N815 (reprlib looks methods up by the names of classes)
    repr_Items = reprlib.Repr.repr_list  # noqa: N815


_brief = _Brief()
_brief.maxlevel, _brief.maxstring, _brief.maxlong, _brief.maxother = 3, 80, 80, 80


class _Reader:
    """Turns plain values into the fields of a recipe, and collects mistakes on the way."""

    def __init__(self, source: str, problems: Sequence[tuple[int, str]]) -> None:
        self.source = source
        self.problems: list[tuple[int | None, str]] = list(problems)

    def read(self, values: Any) -> dict[str, Any]:
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
                wrong = "is reserved for slots that stay float" if key == "off" else "must be text"
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
        return {"name": str(name), "rules": rules, **patterns, "refinement": Refinement(**refinement)}

    def _error(self) -> RecipeError:
        problems = dict.fromkeys(self.problems)  # A value that several aliases name has its mistakes once.
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
            self._problem(values, f"{name}: {problem}", key=_setting_of(problem, values))
        return None if problems or nested else QuantSpec.from_dict(values)

    def _refinement(self, values: Mapping[Any, Any]) -> dict[str, Any]:
        settings = self._mapping(values, "refinement")
        for problem in Refinement.problems_in(settings):
            self._problem(settings, f"refinement: {problem}", key=_setting_of(problem, settings))
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
        """Note a mistake in ``values``, with the line of ``key``, or of the whole if there is no key."""
        line = None
        if isinstance(values, Lines):
            line = values.of.get(key, values.own)
        elif isinstance(values, Items):
            line = values.of[key] if isinstance(key, int) else None
        self.problems.append((line, text))


def _setting_of(problem: str, settings: Mapping[Any, Any]) -> Any:
    """Return the setting that a problem is about, which is what the text begins with; None if it is about several."""
    return next((name for name in settings if problem.startswith((f"{name} ", f"unknown key {name!r} "))), None)
