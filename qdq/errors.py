"""The errors that users can meet, with the exit code of the command line.

    QDQError                    2
    ├── ConfigError             2   a config.json or an option that is not supported
    ├── CheckpointError         2   a checkpoint that is damaged, incomplete or of another kind
    ├── RecipeError             2   a recipe with mistakes
    ├── DataError               2   calibration or evaluation data that cannot be read
    ├── CalibrationError        2   slots without data, NaN or infinite activations
    ├── TrainingError           2   a training that cannot continue: a loss that is NaN, the state of another run
    ├── ExportError             2   a combination of options that cannot be exported
    ├── BuildError              2   an engine that cannot be built
    ├── VerificationError       1   a check that failed
    ├── MissingPackageError     3   an optional package that is not installed
    └── StorageError            4   disk full, no permission, other I/O

A message names the culprit and the rule, and says what to do. All problems of one input are reported together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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
    "differences",
]


class QDQError(Exception):
    """The base class of all errors that this package raises on purpose."""

    exit_code: ClassVar[int] = 2


class ConfigError(QDQError):
    """A configuration or an option is not supported."""


class CheckpointError(QDQError):
    """A checkpoint is damaged, incomplete or of another kind."""


class RecipeError(QDQError):
    """A recipe has mistakes, all of which are listed."""


class DataError(QDQError):
    """Text or a dataset cannot be read as requested."""


class CalibrationError(QDQError):
    """No range can be found from the data."""


class TrainingError(QDQError):
    """A training cannot continue."""


class ExportError(QDQError):
    """A model cannot be exported as requested."""


class BuildError(QDQError):
    """An engine cannot be built."""


class VerificationError(QDQError):
    """A check failed."""

    exit_code = 1


class MissingPackageError(QDQError):
    """An optional package is not installed; the message has the pip command.

    Args:
        package: The name of the package.
        extra: The extra of qdq that installs it.
        purpose: What needs it, with which the message begins.
    """

    exit_code = 3

    def __init__(self, package: str, *, extra: str, purpose: str) -> None:
        super().__init__(f"{purpose} needs the package '{package}', which is not installed: pip install 'qdq[{extra}]'")


class StorageError(QDQError):
    """Reading or writing failed for a reason outside the data: the disk is full, or a permission is missing."""

    exit_code = 4


def describe_problems(source: str, problems: Iterable[str], *, limit: int = 20) -> str:
    """Return one message for all problems of one input.

    Args:
        source: The input, with which the message begins.
        problems: The problems. If there is only one, it follows on the same line, else each has a line of its own.
        limit: The largest number of problems that are shown.
    """
    problems = list(problems)
    if len(problems) == 1:
        return f"{source}: {problems[0]}"
    shown = [f"  - {problem}" for problem in problems[:limit]]
    if len(problems) > limit:
        shown.append(f"  - and {len(problems) - limit} more")
    return "\n".join([f"{source}: {len(problems)} problems", *shown])


def differences(there: Mapping[str, object], here: Mapping[str, object]) -> list[str]:
    """Return the entries that two records do not have in common, each with its value in both.

    Args:
        there: What was recorded before.
        here: What is the case now.
    """
    return [
        f"{name}: {there.get(name, 'nothing')} there, {here.get(name, 'nothing')} here"
        for name in dict.fromkeys([*here, *there])
        if here.get(name) != there.get(name)
    ]
