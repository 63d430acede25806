"""Options that have an effect only together with another one: given alone, they are refused, never ignored."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import typer

__all__ = ["check_needed_options"]


@dataclass(frozen=True)
class _Need:
    """Options, and what they need.

    Args:
        options: The options.
        words: What they need, for the message.
        is_met: Whether the values of all options of the command, by the option's name, have it.
    """

    options: tuple[str, ...]
    words: str
    is_met: Callable[[Mapping[str, Any]], bool]


def _with(option: str, *options: str) -> _Need:
    """Need another option to be given."""
    return _Need(options, option, lambda values: bool(values[option]))


def _task(*tasks: str, options: tuple[str, ...]) -> _Need:
    return _Need(options, f"--task {' or '.join(tasks)}", lambda values: values["--task"] in tasks)


_NEEDS: dict[str, tuple[_Need, ...]] = {
    "calibrate": (
        _with(
            "--calib-data",
            *("--calibrator", "--percentile", "--num-samples", "--seq-len", "--batch-size", "--text-column"),
            *("--text-pair-column", "--resume", "--add-statistics", "--save-statistics", "--fuse-qkv", "--clip-gelu"),
        ),
    ),
    "finetune": (
        _with("--recipe", "--calibration-samples", "--refine"),
        _with("--eval-data", "--eval-split", "--eval-steps"),
        _with(
            "--teacher",
            *("--task-weight", "--logits-weight", "--hidden-weight", "--attention-weight", "--temperature"),
        ),
        _Need(("--scale-lr",), "--ranges learned", lambda values: values["--ranges"] == "learned"),
    ),
    "export": (_with("--tune", "--min-cosine", "--shape", "--threads", "--rounds"),),
    "evaluate": (
        _task(
            "question-answering",
            options=("--stride", "--n-best", "--max-answer-length", "--null-threshold", "--always-answer"),
        ),
        _task("sts", "retrieval", options=("--pooling",)),
    ),
    "analyze": (_with("--task", "--task-samples"),),
    "generate": (
        _Need(
            ("--length-penalty", "--early-stopping"),
            "several beams (--num-beams)",
            lambda values: values["--num-beams"] > 1,
        ),
    ),
    "inspect": (_with("--profile", "--runtime", "--shape", "--threads"),),
}


def check_needed_options(context: typer.Context) -> None:
    """Raise if an option of the command that runs was given without what it needs.

    Raises:
        ConfigError: Options would have no effect; all of them are named.
    """
    if context.info_name not in _NEEDS:
        return
    names = {max(one.opts, key=len): one.name or "" for one in context.command.params}
    values = {option: context.params.get(name) for option, name in names.items()}
    sources = {option: context.get_parameter_source(name) for option, name in names.items()}
    given = {option for option, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
    problems = [
        f"{option} needs {need.words}, and has no effect without it"
        for need in _NEEDS[context.info_name]
        if not need.is_met(values)
        for option in need.options
        if option in given
    ]
    if problems:
        raise ConfigError(describe_problems(f"qdq {context.info_name}", problems))
