"""Refuse arguments that are not UTF-8: a byte that is no text reaches Python as half of a surrogate pair."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

__all__ = ["check_encoding", "is_utf8"]


def is_utf8(text: str) -> bool:
    """Return whether a text can be written in UTF-8."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def check_encoding(values: Iterable[Any]) -> None:
    """Check the arguments of a command.

    1. A text must be UTF-8, unless it names a file: a file name is any bytes, and Python opens it.
    2. A directory must have a name in UTF-8, since the packages that read models open no other.

    Raises:
        ConfigError: Arguments are not UTF-8; the message lists all of them.
    """
    problems = []
    for value in _flat(values):
        if is_utf8(str(value)):
            continue
        if Path(value).is_dir():  # case 2
            problems.append(f"{str(value)!r} is a directory whose name is not UTF-8: rename it")
        elif isinstance(value, str) and not Path(value).exists():  # case 1
            problems.append(f"{value!r} has bytes that are not UTF-8: write the text in UTF-8")
    if problems:
        raise ConfigError(describe_problems("arguments", problems))


def _flat(values: Iterable[Any]) -> Iterator[str | Path]:
    for value in values:
        if isinstance(value, str | Path):
            yield value
        elif isinstance(value, list | tuple):
            yield from _flat(value)
