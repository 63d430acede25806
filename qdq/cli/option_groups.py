"""Options that several commands share, declared once."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from inspect import Signature, signature
from typing import TYPE_CHECKING, Any, ParamSpec, get_type_hints

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["with_groups"]

P = ParamSpec("P")


def with_groups(function: Callable[P, None]) -> Callable[..., None]:
    """A function for typer in place of ``function``, whose parameters may be groups of options.

    A group is a dataclass whose fields are options, all of them with a default. Where a parameter has such a type, the
    command gets the options of the group, in their order and in its place, and the function an instance of it.
    """
    hints = get_type_hints(function, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = []
    for parameter in signature(function).parameters.values():
        if parameter.name not in groups:
            parameters.append(parameter.replace(annotation=hints[parameter.name]))
            continue
        group = groups[parameter.name]
        own = get_type_hints(group, include_extras=True)
        parameters += [
            parameter.replace(name=field.name, annotation=own[field.name], default=field.default)
            for field in fields(group)
        ]

    def run(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        function(**given)  # type: ignore[call-arg]

    run.__signature__ = Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__name__, run.__doc__ = function.__name__, function.__doc__
    return run
