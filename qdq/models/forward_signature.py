"""What a model takes, said in the signature of its ``forward``, where libraries look for names of inputs and labels."""

import inspect
from collections.abc import Callable
from types import FunctionType
from typing import Any

__all__ = ["with_named_inputs"]


def with_named_inputs(
    forward: Callable[..., Any], encode: Callable[..., Any], targets: tuple[str, ...]
) -> Callable[..., Any]:
    """``forward`` with a signature that names what it hands on: first ``targets``, then what ``encode`` takes by name.

    Args:
        forward: takes anything by name.
        encode: whose arguments are all named in its own signature.
        targets: names of what is learned.
    """
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
