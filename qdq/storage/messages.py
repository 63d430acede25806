"""Error messages about directories that several commands share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qdq.errors import describe_problems, differences

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = ["missing_directory", "resume_mismatch"]


def missing_directory(path: Path, cure: str) -> str:
    """Return the message for a path where a directory was expected.

    Args:
        path: Where nothing is, or a file.
        cure: What to give instead, in the imperative.
    """
    return f"{path}: {'is a file, not a directory' if path.exists() else 'no such directory'}; {cure}"


def resume_mismatch(
    folder: Path, recorded: Mapping[str, str], requested: Mapping[str, str], *, what: str
) -> str | None:
    """Return why the interrupted work in ``folder`` cannot be resumed, or None if it can.

    Args:
        folder: The directory that holds the resume files.
        recorded: What the interrupted work belongs to, by name: model, recipe, data and so on.
        requested: What is asked for now, under the same names.
        what: The kind of work, for the message: ``training`` or ``calibration``.
    """
    problems = differences(recorded, requested)
    if not problems:
        return None
    return (
        describe_problems(f"{folder}: the interrupted {what} there differs from this one", problems)
        + "\nresume with the same settings, or start again without resuming"
    )
