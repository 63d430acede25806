"""Options that are declared once: groups of options, and settings of the library that become options."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from inspect import Parameter, Signature, signature
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec, get_args, get_origin, get_type_hints

import typer

from qdq.settings import Setting, settings_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["with_groups"]

P = ParamSpec("P")


def with_groups(function: Callable[P, None]) -> Callable[..., None]:
    """Return a function for typer in place of ``function``, whose parameters may be groups of options.

    A group is a dataclass. The command gets an option for each of its fields, in their order and in the place of the
    parameter, and ``function`` gets an instance of the dataclass. There are two kinds:

    1. A dataclass of the command line, whose fields are annotated with ``typer.Option``, all with a default.
    2. A settings dataclass of the library (:mod:`qdq.settings`), annotated as ``Annotated[TrainingSettings, "Steps"]``
       where the text names the panel of the help for settings that name none themselves. Fields without a setting, or
       with one that is no option, keep their default.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, _Group] = {}
    parameters: list[Parameter] = []
    for parameter in signature(function).parameters.values():
        name = parameter.name
        if (found := _dataclass_of(hints[name])) is None:
            parameters.append(parameter.replace(annotation=hints[name]))
            continue
        groups[name] = _Group(name, *found)
        parameters += groups[name].options(parameter.kind)

    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group.instance(given)
        function(**given)  # type: ignore[call-arg]

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    return run


def _dataclass_of(hint: Any) -> tuple[Any, str | None] | None:
    """Return the dataclass behind a parameter's annotation and its panel, or None where it is no dataclass."""
    if get_origin(hint) is Annotated:
        kind, *notes = get_args(hint)
        panel = next((note for note in notes if isinstance(note, str)), None)
        return (kind, panel) if is_dataclass(kind) else None
    return (hint, None) if is_dataclass(hint) else None


class _Group:
    """The options of one parameter of a command.

    Args:
        name: Name of the parameter.
        kind: The dataclass.
        panel: Panel of the help for settings that name none.
    """

    def __init__(self, name: str, kind: Any, panel: str | None) -> None:
        self._kind, self._panel = kind, panel
        self._settings = {one: declared for one, _, declared in settings_of(kind)}
        self._fields = {
            # The option of a setting is spelled out, so that fields of two dataclasses may have the same name.
            f"{name}__{one.name}" if self._settings else one.name: one
            for one in fields(kind)
            if not self._settings or (one.name in self._settings and self._settings[one.name].option is not None)
        }

    def options(self, parameter_kind: Any) -> Iterator[Parameter]:
        """Yield a parameter for typer for each option."""
        # Only the options' types are resolved: others may be imported for type checkers alone.
        types = {one.name: one.type for one in self._fields.values()}
        options = type(self._kind.__name__, (), {"__annotations__": types, "__module__": self._kind.__module__})
        hints = get_type_hints(options, include_extras=True)
        for parameter, one in self._fields.items():
            annotation = _repeatable(hints[one.name])
            if self._settings:
                annotation = Annotated[annotation, _option(one.name, annotation, self._settings[one.name], self._panel)]
            yield Parameter(parameter, parameter_kind, default=one.default, annotation=annotation)

    def instance(self, given: dict[str, Any]) -> Any:
        """Take the values of the group out of ``given`` and return the dataclass made from them."""
        values = {}
        for parameter, one in self._fields.items():
            value = given.pop(parameter)
            # typer gives a list for an option that is repeatable.
            values[one.name] = tuple(value) if isinstance(one.default, tuple) else value
        return self._kind(**values)


def _repeatable(annotation: Any) -> Any:
    """Return the annotation by which typer makes a repeatable option of a tuple of any length."""
    kind, *rest = get_args(annotation) or (None,)
    return list[kind] if get_origin(annotation) is tuple and rest == [...] else annotation  # type: ignore[valid-type]


def _option(name: str, kind: Any, setting: Setting, panel: str | None) -> Any:
    spelling = setting.option or f"--{name.replace('_', '-')}"
    # An empty metavar keeps the help of flags free of their type.
    metavar = setting.metavar or ("" if kind is bool else None)
    return typer.Option(spelling, metavar=metavar, help=setting.help, rich_help_panel=setting.panel or panel)
