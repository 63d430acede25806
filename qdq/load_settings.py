"""What a job may overlook in the directory of a model, and where it takes the tokenizer from."""

from __future__ import annotations

from dataclasses import dataclass

from qdq.settings import Rule, check, documented, setting

__all__ = ["DEFAULT_LOADING", "DRAWABLE", "LoadSettings"]

DRAWABLE = ("head", "pooler")
"""The modules that may be missing from a checkpoint and are then drawn."""

_PANEL = "Loading"


def _are_drawable(value: object) -> bool:
    return isinstance(value, tuple) and all(name in DRAWABLE for name in value)


def _are_patterns(value: object) -> bool:
    return isinstance(value, tuple) and all(isinstance(name, str) and bool(name) for name in value)


@documented
@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """How the model of a directory is loaded. A :class:`~qdq.source.ModelDirectory` carries these settings.

    Raises:
        ConfigError: A value breaks its rule; all of them are listed.
    """

    allow_missing: tuple[str, ...] = setting(
        (),
        "Use a randomly initialized head or pooler if the checkpoint has none. Repeatable.",
        Rule(_are_drawable, "head or pooler", {"type": "array", "items": {"enum": list(DRAWABLE)}}),
        metavar="head|pooler",
        panel=_PANEL,
    )
    ignore_keys: tuple[str, ...] = setting(
        (),
        "Leave out tensors of the checkpoint whose names match this pattern, as in 'fit_dense.*'. Repeatable.",
        Rule(_are_patterns, "patterns of names", {"type": "array", "items": {"type": "string"}}),
        metavar="GLOB",
        panel=_PANEL,
    )
    tokenizer: str | None = setting(
        None,
        "Directory with tokenizer files to use instead of those of the model; they are copied to what is written.",
        metavar="DIR",
        panel=_PANEL,
    )
    seed: int | None = setting(
        None,
        "Seed of the weights that allow_missing draws; None takes torch's random numbers as they come.",
        option=None,
    )

    def __post_init__(self) -> None:
        check(self, "loading")


DEFAULT_LOADING = LoadSettings()
