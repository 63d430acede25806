"""Settings: frozen dataclasses whose fields carry their help text and their rule.

One declaration serves three readers: the constructor checks it, a command makes its options from it, and the JSON
schema of an editor is written from it.

    @documented
    @dataclass(frozen=True, kw_only=True)
    class Search:
        beams: int = setting(1, "Number of beams.", whole(1))
        order: str = setting("best", "Order of the results.", choice("best", "first"))

        def __post_init__(self) -> None:
            check(self, "settings of the search")
"""

from __future__ import annotations

import inspect
import math
import reprlib
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, TypeVar

from qdq.errors import ConfigError, QDQError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

__all__ = [
    "Rule",
    "Setting",
    "anything",
    "check",
    "choice",
    "documented",
    "flag",
    "json_schema",
    "number",
    "problems_in",
    "setting",
    "settings_of",
    "whole",
]

T = TypeVar("T")


@dataclass(frozen=True)
class Rule:
    """Say what a value must be.

    Args:
        holds: Returns whether a value is allowed.
        words: The rule in words, as they follow "must be".
        schema: The rule as a JSON schema.
    """

    holds: Callable[[Any], bool]
    words: str
    schema: Mapping[str, Any]

    def or_none(self) -> Rule:
        """Allow None as well."""
        holds = self.holds
        return Rule(
            lambda value: value is None or holds(value),
            f"{self.words}, or null",
            {"anyOf": [dict(self.schema), {"type": "null"}]},
        )


def whole(low: int, high: int | None = None) -> Rule:
    """Require a whole number from ``low`` to ``high``."""

    def holds(value: Any) -> bool:
        return _is_number(value, int) and low <= value and (high is None or value <= high)

    words = f"a whole number of at least {low}" if high is None else f"a whole number from {low} to {high}"
    return Rule(holds, words, {"type": "integer", "minimum": low} | ({} if high is None else {"maximum": high}))


def number(low: float = -math.inf, high: float = math.inf, *, above: bool = False) -> Rule:
    """Require a finite number from ``low`` to ``high``; with ``above`` it must be greater than ``low``."""

    def holds(value: Any) -> bool:
        return _is_number(value, int | float) and (low < value if above else low <= value) and value <= high

    bounds: dict[str, Any] = {}
    if math.isfinite(low):
        bounds["exclusiveMinimum" if above else "minimum"] = low
    if math.isfinite(high):
        bounds["maximum"] = high
    return Rule(holds, _describe_number(low, high, above=above), {"type": "number", **bounds})


def _describe_number(low: float, high: float, *, above: bool) -> str:
    if math.isinf(low):
        return "a number" if math.isinf(high) else f"a number of at most {high:g}"
    if math.isinf(high):
        return f"a number above {low:g}" if above else f"a number of at least {low:g}"
    return f"a number above {low:g} and at most {high:g}" if above else f"a number from {low:g} to {high:g}"


def choice(*names: str) -> Rule:
    """Require one of ``names``."""
    return Rule(
        lambda value: isinstance(value, str) and value in names, f"one of {', '.join(names)}", {"enum": list(names)}
    )


def flag() -> Rule:
    """Require true or false."""
    return Rule(lambda value: isinstance(value, bool), "true or false", {"type": "boolean"})


def anything() -> Rule:
    """Leave the check to whoever uses the value."""
    return Rule(lambda _: True, "anything", {})


def _is_number(value: Any, kind: Any) -> bool:
    # bool is an int to Python, and NaN passes no comparison but infinity does.
    return isinstance(value, kind) and not isinstance(value, bool) and math.isfinite(value)


@dataclass(frozen=True)
class Setting:
    """What a field of a settings dataclass says about itself.

    Args:
        help: One sentence for the help of a command and for an editor.
        rule: What a value must be.
        option: Spelling on the command line, ``--shift/--no-shift`` for a flag that can be switched off; empty for the
            name of the field, None for a setting that is no option.
        metavar: What stands for the value in the help of a command; empty for what follows from the type.
        panel: Panel of a command's help; empty for the one that the command gives to all settings of the dataclass.
    """

    help: str
    rule: Rule
    option: str | None = ""
    metavar: str = ""
    panel: str = ""


def setting(
    default: Any,
    help: str,  # noqa: A002 (the word that typer and argparse use)
    rule: Rule | None = None,
    *,
    option: str | None = "",
    metavar: str = "",
    panel: str = "",
) -> Any:  # like dataclasses.field, so that the annotation decides the type
    """Declare a field of a settings dataclass; see :class:`Setting`."""
    return field(default=default, metadata={"setting": Setting(help, rule or anything(), option, metavar, panel)})


def settings_of(group: type) -> Iterator[tuple[str, Any, Setting]]:
    """Yield name, default and declaration of every setting of the dataclass ``group``, in order."""
    for one in fields(group):
        declared = one.metadata.get("setting")
        if isinstance(declared, Setting):
            yield one.name, one.default, declared


def documented(group: type[T]) -> type[T]:
    """Add the help of every setting to the docstring of the dataclass ``group``, under ``Args:``; a decorator."""
    text, raises, rest = inspect.cleandoc(group.__doc__ or "").partition("\n\nRaises:")
    settings = [f"    {name}: {declared.help}" for name, _, declared in settings_of(group)]
    group.__doc__ = "\n".join([f"{text}\n", "Args:", *settings]) + raises + rest
    return group


def problems_in(group: type, values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with plain ``values`` for ``group``, a line each that begins with the setting."""
    rules = {name: declared.rule for name, _, declared in settings_of(group)}
    problems = []
    for name, value in values.items():
        if name not in rules:
            problems.append(f"unknown key {name!r} (known: {', '.join(rules)})")
        elif not rules[name].holds(value):
            problems.append(f"{name} is {reprlib.repr(value)}, must be {rules[name].words}")
    return problems


def check(settings: Any, what: str, more: Callable[[], list[str]] = list, error: type[QDQError] = ConfigError) -> None:
    """Raise unless every setting keeps its rule.

    Args:
        settings: An instance of a settings dataclass.
        what: What the message calls it.
        more: Returns the problems between settings; it is asked only when each setting by itself is right.
        error: The class to raise.

    Raises:
        QDQError: Of the class ``error``, with all problems at once.
    """
    values = {name: getattr(settings, name) for name, *_ in settings_of(type(settings))}
    if problems := problems_in(type(settings), values) or more():
        raise error(describe_problems(what, problems))


def json_schema(group: type) -> dict[str, dict[str, Any]]:
    """Return the properties of a JSON schema for ``group``: rule, help and default of each setting."""
    return {
        name: {**declared.rule.schema, "description": declared.help, "default": default}
        for name, default, declared in settings_of(group)
    }
