"""Choose the shapes that models are run at, from what the models take."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporters.benchmark.latency import Shape
from exporters.tensorrt.plan_metadata import is_plan, read_metadata
from qdq.errors import ConfigError, QDQError, describe_problems
from qdq.onnx_files import ONNX_FILE_ENDINGS

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

__all__ = ["AcceptedShape", "accepted_shape", "chosen_shapes"]

_BATCH_SIZES = (1, 8)
_LENGTH = 128


@dataclass(frozen=True)
class AcceptedShape:
    """Describe the shapes that a model takes.

    Args:
        batch_size: The only number of rows, None if it is free.
        seq_len: The only number of tokens, None if it is free.
        longest: The largest number of tokens, None if it is unknown.
    """

    batch_size: int | None = None
    seq_len: int | None = None
    longest: int | None = None


def accepted_shape(path: Path) -> AcceptedShape:
    """Return the shapes that an ONNX file or an engine takes, as far as they are known.

    Raises:
        CheckpointError: An ONNX file cannot be read.
    """
    if is_plan(path):
        with suppress(QDQError):  # whoever runs the engine gets the message
            profiles = read_metadata(path)["profiles"]
            lengths = [shape[-1] for profile in profiles for shape in profile["max"].values() if len(shape) > 1]
            return AcceptedShape(longest=min(lengths, default=None))
        return AcceptedShape()
    if not path.is_file() or path.suffix not in ONNX_FILE_ENDINGS[:1]:
        return AcceptedShape()
    from exporters.onnx.longest_text import longest_text
    from exporters.onnx.walk import load_whole_graph

    model = load_whole_graph(path)
    rows, lengths = [], []
    for value in model.graph.inputs:
        shape = value.shape
        is_text = value.dtype is not None and value.dtype.is_integer() and "position" not in str(value.name).lower()
        if not is_text or shape is None or len(shape) < 2 or value.name in model.graph.initializers:
            continue
        rows += [shape[0]] if isinstance(shape[0], int) else []
        lengths += [shape[-1]] if isinstance(shape[-1], int) else []
    longest = longest_text(path, model)
    return AcceptedShape(next(iter(rows), None), next(iter(lengths), None), longest)


def chosen_shapes(
    accepted: Mapping[str, AcceptedShape],
    batch_sizes: Sequence[int] | None,
    seq_lens: Sequence[int] | None,
    *,
    default_batch_sizes: Sequence[int] = _BATCH_SIZES,
    options: tuple[str, str] = ("--batch-size", "--seq-len"),
) -> list[Shape]:
    """Return the shapes to run all models at.

    What is not given is what the files are fixed to, or else 128 tokens, or fewer if a model has fewer positions.

    Args:
        accepted: What each model takes, by its name.
        batch_sizes: The numbers of rows that the user asks for.
        seq_lens: The numbers of tokens that the user asks for.
        default_batch_sizes: Numbers of rows where nothing else decides.
        options: The options that set the two, for the message.

    Raises:
        ConfigError: A model does not take a shape, or two models have no shape in common. All problems are listed.
    """
    problems = []
    fixed_rows = {name: one.batch_size for name, one in accepted.items() if one.batch_size is not None}
    fixed_lengths = {name: one.seq_len for name, one in accepted.items() if one.seq_len is not None}
    for option, given, fixed, what in (
        (options[0], batch_sizes, fixed_rows, "rows"),
        (options[1], seq_lens, fixed_lengths, "tokens"),
    ):
        for name, size in fixed.items():
            problems += [
                f"{option} {wanted}: {name} takes exactly {size} {what}: leave it out"
                for wanted in given or ()
                if wanted != size
            ]
        if len(set(fixed.values())) > 1 and not given:
            several = ", ".join(f"{name} takes exactly {size}" for name, size in fixed.items())
            problems.append(f"the models have no number of {what} in common: {several}")
    longest = {name: one.longest for name, one in accepted.items() if one.longest is not None}
    problems += [
        f"{options[1]} {wanted}: {name} accepts at most {most} tokens"
        for wanted in seq_lens or ()
        for name, most in longest.items()
        if wanted > most and name not in fixed_lengths
    ]
    if problems:
        raise ConfigError(problems[0] if len(problems) == 1 else describe_problems("the shapes", problems))
    length = next(iter(fixed_lengths.values()), min([_LENGTH, *longest.values()]))
    rows = [next(iter(fixed_rows.values()))] if fixed_rows else list(default_batch_sizes)
    return [Shape(batch_size, seq_len) for seq_len in seq_lens or [length] for batch_size in batch_sizes or rows]
