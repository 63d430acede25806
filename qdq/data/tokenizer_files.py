"""Read the files of a tokenizer: vocabularies, settings and special tokens."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from qdq.errors import CheckpointError, StorageError, describe_problems
from qdq.storage import refuse_pointer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "SPECIAL_ROLES",
    "read_bytes",
    "read_config",
    "read_lines",
    "read_object",
    "read_settings",
    "read_text",
    "special_tokens",
    "token_text",
]


SPECIAL_ROLES = ("pad", "unk", "cls", "sep", "mask")


def read_settings(model_dir: Path) -> dict[str, Any]:
    """Read ``tokenizer_config.json`` and ``special_tokens_map.json``; empty if there is neither.

    The second file wins, as in transformers, which reads it only where the first has no ``added_tokens_decoder``.

    Raises:
        CheckpointError: One of them is damaged, or settings have values of the wrong kind; all of them are listed.
        StorageError: One of them cannot be read.
    """
    path = model_dir / "tokenizer_config.json"
    settings = read_object(path) if path.is_file() else {}
    if problems := _problems(settings):
        raise CheckpointError(describe_problems(str(path), problems))
    beside = model_dir / "special_tokens_map.json"
    if beside.is_file() and "added_tokens_decoder" not in settings:
        settings |= read_object(beside)
        if problems := _problems(settings):
            raise CheckpointError(describe_problems(str(beside), problems))
    return settings


_SWITCHES = (
    "add_prefix_space",
    "do_lower_case",
    "keep_accents",
    "split_special_tokens",
    "strip_accents",
    "tokenize_chinese_chars",
    "trim_offsets",
)


def _problems(settings: Mapping[str, Any]) -> list[str]:
    """Return a problem for each setting whose value is not of its kind; null counts as missing."""
    kinds: dict[str, tuple[tuple[type, ...], str]] = {
        **dict.fromkeys(_SWITCHES, ((bool,), "true or false")),
        "added_tokens_decoder": ((dict,), "an object of tokens by their ids"),
        "additional_special_tokens": ((list, dict), "a list of tokens"),
        "extra_special_tokens": ((list, dict), "a list of tokens, or an object of tokens by their names"),
        "model_input_names": ((list,), "a list of names"),
        "tokenizer_class": ((str,), "a name"),
    }
    problems = [
        f"{name} must be {wanted}, not {settings[name]!r}"
        for name, (types, wanted) in kinds.items()
        if settings.get(name) is not None and not isinstance(settings[name], types)
    ]
    sides = ("truncation_side", "padding_side")
    return problems + [
        f"{name} must be left or right, not {settings[name]!r}"
        for name in sides
        if settings.get(name) not in (None, "left", "right")
    ]


def read_config(model_dir: Path) -> dict[str, Any]:
    """Read the fields of ``config.json`` as they are; empty if there is none.

    Raises:
        CheckpointError: The file is damaged.
        StorageError: The file cannot be read.
    """
    path = model_dir / "config.json"
    return read_object(path) if path.is_file() else {}


def special_tokens(settings: Mapping[str, Any], defaults: Mapping[str, str]) -> dict[str, str]:
    """Return the special tokens by role, which settings write as a string or as an object with ``content``."""
    return {role: token_text(settings.get(f"{role}_token"), default) for role, default in defaults.items()}


def token_text(token: Any, default: str) -> str:
    """Return the text of a token that settings write as a string or as an object; ``default`` for anything else."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else default


def read_text(path: Path) -> str:
    """Read a UTF-8 file.

    Raises:
        CheckpointError: The file is not UTF-8, or a pointer of Git LFS.
        StorageError: The file cannot be read.
    """
    refuse_pointer(path)
    try:
        return path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path}: is damaged: not UTF-8 text") from error
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def read_bytes(path: Path) -> bytes:
    """Read a binary file.

    Raises:
        CheckpointError: The file is a pointer of Git LFS.
        StorageError: The file cannot be read.
    """
    refuse_pointer(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror or error}") from error


def read_lines(path: Path) -> list[str]:
    """Read the lines of a UTF-8 file, without a byte order mark and without empty lines at the end."""
    return read_text(path).removeprefix("\ufeff").rstrip("\n").split("\n")


def read_object(path: Path) -> dict[str, Any]:
    """Read a file that holds a JSON object.

    Raises:
        CheckpointError: The file holds anything else.
        StorageError: The file cannot be read.
    """
    try:
        value = json.loads(read_text(path))
    except ValueError as error:
        raise CheckpointError(f"{path}: is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: must hold a JSON object")
    return value
