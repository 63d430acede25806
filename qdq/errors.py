"""The errors a user can meet, and the exit code each one ends the command line with.

    QDQError                    2
    ├── ConfigError             2   a config.json or an option we cannot follow
    ├── CheckpointError         2   a damaged, incomplete or foreign checkpoint
    ├── RecipeError             2   a recipe with mistakes
    ├── DataError               2   calibration or evaluation data we cannot read
    ├── CalibrationError        2   slots without data, NaN or infinite activations
    ├── TrainingError           2   a training that cannot go on: a loss that is NaN, another run's state
    ├── ExportError             2   a combination of options the exporter refuses
    ├── BuildError              2   an engine that cannot be built
    ├── VerificationError       1   a check that did not hold
    ├── MissingPackageError     3   an optional package that is not installed
    └── StorageError            4   disk full, no permission, other I/O

A message names the culprit and the rule and says what to do; all problems of one input arrive together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = [
    "BuildError",
    "CalibrationError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ExportError",
    "MissingPackageError",
    "QDQError",
    "RecipeError",
    "StorageError",
    "TrainingError",
    "VerificationError",
    "describe_problems",
]


class QDQError(Exception):
    """Base of every error this package raises on purpose."""

    exit_code: ClassVar[int] = 2


class ConfigError(QDQError):
    """A configuration we cannot follow."""


class CheckpointError(QDQError):
    """A checkpoint that is damaged, incomplete or of another kind."""


class RecipeError(QDQError):
    """A recipe with mistakes; all of them are listed."""


class DataError(QDQError):
    """Text or a dataset that cannot be read as asked."""


class CalibrationError(QDQError):
    """Statistics that cannot give a range."""


class TrainingError(QDQError):
    """A training that cannot go on."""


class ExportError(QDQError):
    """An export that cannot be made as asked."""


class BuildError(QDQError):
    """An engine that cannot be built."""


class VerificationError(QDQError):
    """A check that did not hold."""

    exit_code = 1


class MissingPackageError(QDQError):
    """An optional package is not installed; the message carries the pip command."""

    exit_code = 3

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}', which is not installed: pip install 'qdq[{extra}]'")


class StorageError(QDQError):
    """Reading or writing failed for a reason outside the data: disk full, no permission."""

    exit_code = 4


def describe_problems(subject: str, problems: Iterable[str], *, limit: int = 20) -> str:
    """One message for all ``problems`` of one input: the subject, then a line each, at most ``limit`` of them."""
    problems = list(problems)
    if len(problems) == 1:
        return f"{subject}: {problems[0]}"
    shown = [f"  - {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        shown.append(f"  - and {len(problems) - limit} more")
    return "\n".join([f"{subject}: {len(problems)} problems", *shown])
