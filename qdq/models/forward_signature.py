"""Give ``forward`` a signature that names all arguments.

transformers' Trainer and similar libraries read the signature to decide which columns of a data set a model takes.
"""

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

__all__ = ["with_named_inputs"]


def with_named_inputs(
    forward: Callable[..., Any], encode: Callable[..., Any], targets: tuple[str, ...]
) -> Callable[..., Any]:
    """Return a copy of ``forward`` whose signature names the arguments that it passes on.

    Args:
        forward: A function that takes any keyword argument.
        encode: The function that gets the arguments; its keyword arguments are added to the signature.
        targets: Names of labels, which stand before them in the signature.
    """
    # Copy the function, since a signature is an attribute of the function and all model classes share the one forward.
    assert isinstance(forward, FunctionType)
    copied = FunctionType(forward.__code__, forward.__globals__, forward.__name__, forward.__defaults__)
    for attribute in ("__kwdefaults__", "__doc__", "__annotations__", "__qualname__", "__module__"):
        setattr(copied, attribute, getattr(forward, attribute))
    own = [p for p in inspect.signature(forward).parameters.values() if p.kind is not p.VAR_KEYWORD]
    positional = [p for p in own if p.kind is not p.KEYWORD_ONLY]
    by_name = [p for p in inspect.signature(encode).parameters.values() if p.kind is p.KEYWORD_ONLY]
    learned = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in targets]
    named = [*learned, *by_name, *(p for p in own if p.kind is p.KEYWORD_ONLY)]
    copied.__signature__ = inspect.Signature([*positional, *named])  # type: ignore[attr-defined]
    return copied
