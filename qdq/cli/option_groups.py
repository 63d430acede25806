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
       where the text names the panel of the help. Fields without a setting, or with one that is no option, keep their
       default.
    """
    hints = get_type_hints(function, include_extras=True)
    groups = {name: group for name, hint in hints.items() if (group := _group(hint)) is not None}
    parameters: list[Parameter] = []
    for parameter in signature(function).parameters.values():
        if parameter.name in groups:
            parameters += _options(*groups[parameter.name], parameter.kind)
        else:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))

    def run(**given: Any) -> None:
        for name, (group, _) in groups.items():
            own = {one.name for one in fields(group)} & given.keys()
            given[name] = group(**{field: given.pop(field) for field in own})
        function(**given)  # type: ignore[call-arg]

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    return run


def _group(hint: Any) -> tuple[Any, str | None] | None:
    """The dataclass behind a parameter's annotation, and its panel."""
    if get_origin(hint) is Annotated:
        kind, *notes = get_args(hint)
        panel = next((note for note in notes if isinstance(note, str)), None)
        return (kind, panel) if is_dataclass(kind) else None
    return (hint, None) if is_dataclass(hint) else None


def _options(group: Any, panel: str | None, kind: Any) -> Iterator[Parameter]:
    hints = get_type_hints(group, include_extras=True)
    declared = {name: setting for name, _, setting in settings_of(group)}
    for one in fields(group):
        annotation = hints[one.name]
        if declared:
            if one.name not in declared or declared[one.name].option is None:
                continue
            annotation = Annotated[annotation, _option(one.name, annotation, declared[one.name], panel)]
        yield Parameter(one.name, kind, default=one.default, annotation=annotation)


def _option(name: str, kind: Any, setting: Setting, panel: str | None) -> Any:
    is_flag = kind is bool
    spelling = setting.option or (f"--{name.replace('_', '-')}" if is_flag else None)
    # An empty metavar keeps the help of flags free of their type.
    metavar = setting.metavar or ("" if is_flag else None)
    names = () if spelling is None else (spelling,)
    return typer.Option(*names, metavar=metavar, help=setting.help, rich_help_panel=panel)
