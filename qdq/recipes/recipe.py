"""Recipes: ordered rules that say which slots of a model are quantized, and how.

    name: linear
    specs:
      activation: {bits: 8, signed: true, symmetric: true}
      weight: {bits: 8, granularity: per-axis(0)}
    rules:
      - {module: "encoder.*", kind: linear, slot: input, spec: activation}
      - {module: "encoder.*", kind: linear, slot: weight, spec: weight}
      - {module: "encoder.layers.0.*", slot: "*", spec: off}

A rule names modules by a shell pattern, optionally restricts them to one kind or a list of kinds (``linear``,
``embedding``, ``matmul``, ``add``), and names a slot (``input``, ``weight``, ``other``, or ``*``). The last rule that
matches a slot decides, and a slot that no rule matches stays float. A rule that matches nothing is an error, unless it
says ``optional: true``, because not every model has a head with a decoder. ``include`` and ``exclude`` patterns
override all rules.

``refinement: {smoothing: 0.9, shift: true, bias_correction: true, rounding: gptq}`` says what calibration does besides
finding ranges (:class:`qdq.recipes.refinement.Refinement`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from fnmatch import fnmatchcase
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.errors import RecipeError, StorageError, describe_problems
from qdq.recipes.recipe_reader import read_fields
from qdq.recipes.refinement import Refinement
from qdq.recipes.rule import Rule
from qdq.recipes.yaml_reader import read_yaml

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from qdq.quantization.slot import Slot
    from qdq.quantization.spec import QuantSpec

__all__ = ["Recipe", "Rule", "load_recipe", "presets"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """A named list of rules that assign specs to slots; see :mod:`qdq.recipes.recipe`.

    Args:
        name: The name of the recipe.
        rules: The rules. The last one that matches a slot decides.
        include: Patterns of modules or slots. If there are any, only slots that match one of them are quantized.
        exclude: Patterns of modules or slots that stay float.
        refinement: What calibration does besides finding ranges.
    """

    name: str
    rules: tuple[Rule, ...]
    include: tuple[str, ...] = field(default=())
    exclude: tuple[str, ...] = field(default=())
    refinement: Refinement = Refinement()  # noqa: RUF009 (frozen)

    def restrict(self, *, include: Sequence[str] = (), exclude: Sequence[str] = ()) -> Recipe:
        """Return the recipe with further ``include`` and ``exclude`` patterns."""
        return replace(self, include=(*self.include, *include), exclude=(*self.exclude, *exclude))

    def assign(self, slots: Iterable[Slot]) -> dict[Slot, QuantSpec | None]:
        """Return the spec of every slot, None for those that stay float.

        Args:
            slots: All slots of a model.

        Raises:
            RecipeError: Rules or patterns match no slot, which are likely typing errors; all of them are named.
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
        """Return plain values for JSON and YAML; :meth:`from_dict` reads them."""
        return {
            "name": self.name,
            "rules": [rule.to_dict() for rule in self.rules],
            "include": list(self.include),
            "exclude": list(self.exclude),
            **({"refinement": self.refinement.to_dict()} if self.refinement else {}),
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
        """Read the plain values of a recipe, as they are in a YAML file.

        Args:
            values: The values.
            source: Where they come from, for the message.

        Raises:
            RecipeError: With all mistakes at once.
        """
        return cls(**read_fields(values, source=source))


def _is_named(slot: Slot, patterns: Iterable[str]) -> bool:
    """Return whether a pattern names the module or the slot."""
    return any(fnmatchcase(slot.module, pattern) or fnmatchcase(str(slot), pattern) for pattern in patterns)


def _hint(pattern: str, slots: Sequence[Slot]) -> str:
    """Return what a pattern that matches nothing may have been meant to say.

    1. Modules have this name, but not this kind or slot: list those that they have.
    2. Names are similar: list the nearest ones, from the first layer if layers repeat.
    3. No name is similar: list examples.
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
    # Patterns often name only some words of a dotted name, so compare with all its runs of words.
    runs: dict[str, str] = {}
    for name in first:
        words = name.split(".")
        for begin in range(len(words)):
            for end in range(len(words), begin, -1):
                runs.setdefault(".".join(words[begin:end]), name)
    written = re.sub(r"\[.*?\]|\d+", "0", pattern).strip("*.?").replace("*", "0")[:200]
    near = dict.fromkeys(runs[run] for run in get_close_matches(written, runs, n=12, cutoff=0.6))
    if near:  # case 2
        return f"names nearest to it: {', '.join(list(near)[:3])}"
    layered = [name for name in first if ".layers.0." in name]
    return f"names are like {', '.join(dict.fromkeys([first[0], *layered[:2], first[-1]]))}"  # case 3


def presets() -> dict[str, Path]:
    """Return the files of the recipes that ship with the package, by name."""
    folder = Path(str(resources.files("qdq.recipes") / "presets"))
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def load_recipe(name_or_path: str | Path) -> Recipe:
    """Load a recipe: a preset by its name, or a YAML file by its path.

    Args:
        name_or_path: The name of a preset, or the path of a file.

    Raises:
        RecipeError: There is no such preset or file, or the file has mistakes; all of them are named with their lines.
        StorageError: The file cannot be read.
    """
    known = presets()
    path = known.get(str(name_or_path), Path(name_or_path))
    try:
        found = path.is_file()
    except PermissionError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    except (OSError, ValueError):  # no file can have such a name
        found = False
    if not found:
        near = get_close_matches(str(name_or_path), known, n=1)
        tip = f"; did you mean {near[0]}?" if near else ""
        raise RecipeError(
            f"no recipe {str(name_or_path)!r}: neither a file nor one of the presets {', '.join(known)}{tip}"
        )
    values, problems = read_yaml(path)
    return Recipe(**read_fields(values, source=str(path), problems=problems))
