"""The operators and opsets of each version of TensorRT, and the names of targets."""

from __future__ import annotations

import json
import re
from functools import cache
from importlib import resources
from typing import Any

from qdq.errors import ConfigError

__all__ = ["opsets_of", "supported_operators", "target_version"]


@cache
def _table() -> dict[str, Any]:
    text = resources.files("exporters.tensorrt.lint").joinpath("operators.json").read_text(encoding="utf-8")
    table: dict[str, Any] = json.loads(text)
    return table


def _number(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def target_version(target: str) -> tuple[int, int]:
    """Return the version in ``tensorrt:10.16``; the newest known version for ``tensorrt`` and ``tensorrt-rtx``.

    Raises:
        ConfigError: If the target is unknown, or its version too old.
    """
    newest = _number(_table()["versions"][-1])
    if target in ("tensorrt", "tensorrt-rtx"):
        return newest
    match = re.fullmatch(r"tensorrt:(\d+)\.(\d+)(\.\d+)*", target)
    known = ", ".join(_table()["versions"])
    if match is None:
        raise ConfigError(f"no target {target!r}: it must be tensorrt, tensorrt-rtx, or tensorrt:VERSION ({known})")
    version = int(match[1]), int(match[2])
    if version < _number(_table()["versions"][0]):
        raise ConfigError(f"TensorRT {match[1]}.{match[2]} is too old to be checked for: known are {known}")
    return version


def supported_operators(version: tuple[int, int]) -> frozenset[str]:
    """Return the operators of a version, or of the last known version before it."""
    names = []
    for name, history in _table()["operators"].items():
        known = [types for since, types in history.items() if _number(since) <= version]
        if known and known[-1]:
            names.append(name)
    return frozenset(names)


def opsets_of(version: tuple[int, int]) -> range:
    """Return the opsets that a version reads."""
    if version >= (10, 15):
        return range(9, 25)
    if version >= (10, 13):
        return range(9, 23)
    return range(9, 21) if version >= (10, 0) else range(7, 18)
