"""Optimization profiles: the range of shapes that an engine accepts, and the shape that it is optimized for.

Shapes are written as for trtexec, ``input_ids:1x8,attention_mask:1x8``. ``8x128`` alone means all inputs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import zip_longest
from typing import TYPE_CHECKING

from qdq.errors import BuildError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "Profile",
    "check_profiles",
    "default_profile",
    "format_shape",
    "format_shapes",
    "longest_sequence",
    "parse_profiles",
]

Shape = tuple[int, ...]
Declared = tuple["int | str | None", ...]

_SHAPE = re.compile(r"\d+(x\d+)*")
_BOUNDS = ("min", "opt", "max")


@dataclass(frozen=True)
class Profile:
    """One optimization profile: the smallest, best and largest shape of every input.

    Args:
        min: The smallest shapes.
        opt: The shapes that kernels are optimized for.
        max: The largest shapes.
    """

    min: Mapping[str, Shape]
    opt: Mapping[str, Shape]
    max: Mapping[str, Shape]

    def to_dict(self) -> dict[str, dict[str, list[int]]]:
        """Return plain values for JSON."""
        return {part: {name: list(shape) for name, shape in getattr(self, part).items()} for part in _BOUNDS}


def default_profile(inputs: Mapping[str, Declared], *, longest: int = 512) -> Profile:
    """Make the default profile: batches up to 32, sequences up to 512 tokens, optimized for 8 x 128.

    TensorRT has no int8 attention beyond 512 tokens: a longer maximum splits it even when short texts are run. If the
    file takes a cache, half of the positions are for the cache.

    Args:
        inputs: Shape of each input as the file declares it; free dimensions are names or None.
        longest: Number of positions of the model. Sequences are not longer.
    """
    top = min(longest, 512)  # the limit of int8 attention
    if any("past_seq" in shape for shape in inputs.values()):
        top = max(top // 2, 1)
    seq = (1, min(128, top), top)
    spans = {"batch": (1, 8, 32), "choices": (1, 4, 8)}

    def span(axis: int, size: int | str | None) -> tuple[int, int, int]:
        if isinstance(size, int):
            return size, size, size
        if isinstance(size, str) and "+" in size:  # the sum of two other dimensions
            parts = [span(axis, name.strip()) for name in size.split("+")]
            return sum(part[0] for part in parts), sum(part[1] for part in parts), sum(part[2] for part in parts)
        if isinstance(size, str) and size in spans:
            return spans[size]
        return spans["batch"] if axis == 0 and not (isinstance(size, str) and "seq" in size) else seq

    chosen = {name: [span(axis, size) for axis, size in enumerate(shape)] for name, shape in inputs.items()}
    parts = [{name: tuple(sizes[bound] for sizes in shape) for name, shape in chosen.items()} for bound in range(3)]
    return Profile(*parts)


def parse_profiles(
    inputs: Mapping[str, Declared], min_: Sequence[str], opt: Sequence[str], max_: Sequence[str]
) -> list[Profile]:
    """Parse the profiles of the command line.

    Args:
        inputs: Shape of each input as the file declares it.
        min_: Smallest shapes, one text for each profile.
        opt: Optimal shapes, one text for each profile.
        max_: Largest shapes, one text for each profile.

    Raises:
        BuildError: If a text is not a shape, or an option is missing for a profile. All problems are listed.
    """
    problems: list[str] = []
    profiles = []
    for index, texts in enumerate(zip_longest(min_, opt, max_)):
        parts: list[dict[str, Shape]] = []
        for bound, text in zip(_BOUNDS, texts, strict=True):
            if text is None:
                problems.append(f"profile {index} has no --{bound}-shapes: give all three of them for every profile")
                parts.append({})
            else:
                parts.append(_parsed(text, inputs, f"--{bound}-shapes {text}", problems))
        profiles.append(Profile(*parts))
    if problems:
        raise BuildError(describe_problems("the shapes cannot be read", problems))
    return profiles


def _parsed(text: str, inputs: Mapping[str, Declared], where: str, problems: list[str]) -> dict[str, Shape]:
    if _SHAPE.fullmatch(text.strip()):
        return dict.fromkeys(inputs, _sizes(text.strip()))
    shapes: dict[str, Shape] = {}
    for part in text.split(","):
        name, colon, sizes = part.strip().rpartition(":")
        name = name.strip("'\"")
        if not colon or not name or not _SHAPE.fullmatch(sizes):
            problems.append(f"{where}: {part!r} is not of the form input_ids:8x128")
        elif name in shapes:
            problems.append(f"{where}: {name} is there twice")
        else:
            shapes[name] = _sizes(sizes)
    return shapes


def _sizes(text: str) -> Shape:
    return tuple(int(size) for size in text.split("x"))


def check_profiles(
    profiles: Sequence[Profile], inputs: Mapping[str, Declared], *, longest: int | None = None
) -> list[str]:
    """Return a line for each problem of the profiles. TensorRT itself would report only the first one.

    1. Every dynamic input is in every profile, and nothing else is.
    2. Rank and fixed lengths are those of the file.
    3. 1 <= min <= opt <= max.
    4. Dimensions with the same name are equal in all inputs of a profile.
    5. No sequence is longer than the number of positions of the model.

    Args:
        profiles: The profiles.
        inputs: Shape of each input as the file declares it.
        longest: Number of positions of the model, None if it is unknown.
    """
    problems = []
    if not profiles and any(_is_free(shape) for shape in inputs.values()):
        problems.append("there is no profile, and the inputs have free dimensions")
    for index, profile in enumerate(profiles):
        for bound in _BOUNDS:
            shapes: Mapping[str, Shape] = getattr(profile, bound)
            where = f"profile {index}, {bound}"
            problems += [
                f"{where}: the input {name} is missing"
                for name, declared in inputs.items()
                if name not in shapes and _is_free(declared)
            ]
            problems += [
                f"{where}: the file has no input {name}; it has {', '.join(inputs)}"
                for name in shapes
                if name not in inputs
            ]
            problems += _shape_problems(where, shapes, inputs)
            problems += _symbol_problems(where, shapes, inputs)
        problems += _order_problems(index, profile)
        problems += _length_problems(index, profile, inputs, longest)
    return problems


def _is_free(declared: Declared) -> bool:
    return not all(isinstance(size, int) for size in declared)


def _shape_problems(where: str, shapes: Mapping[str, Shape], inputs: Mapping[str, Declared]) -> list[str]:
    problems = []
    for name, shape in shapes.items():
        declared = inputs.get(name)
        if declared is None:
            continue
        wanted = "x".join("?" if size is None else str(size) for size in declared)
        if len(shape) != len(declared) or any(
            isinstance(size, int) and size != given for size, given in zip(declared, shape, strict=True)
        ):
            problems.append(f"{where}: {name} is {format_shape(shape)}, the file has {wanted}")
        elif any(size == 0 and "past" not in str(axis) for size, axis in zip(shape, declared, strict=True)):
            problems.append(f"{where}: {name} is {format_shape(shape)}, but no length can be 0")
    return problems


def _symbol_problems(where: str, shapes: Mapping[str, Shape], inputs: Mapping[str, Declared]) -> list[str]:
    found: dict[str, dict[str, int]] = {}
    for name, shape in shapes.items():
        declared = inputs.get(name, ())
        if len(declared) == len(shape):
            for symbol, size in zip(declared, shape, strict=True):
                if isinstance(symbol, str):
                    found.setdefault(symbol, {})[name] = size
    return [
        f"{where}: the dimension {symbol} differs between the inputs: "
        + ", ".join(f"{size} of {name}" for name, size in sizes.items())
        for symbol, sizes in found.items()
        if len(set(sizes.values())) > 1
    ]


def _order_problems(index: int, profile: Profile) -> list[str]:
    problems = []
    for name in profile.opt:
        low, best, high = (part.get(name) for part in (profile.min, profile.opt, profile.max))
        if low is None or best is None or high is None or not len(low) == len(best) == len(high):
            continue
        if not all(a <= b <= c for a, b, c in zip(low, best, high, strict=True)):
            problems.append(
                f"profile {index}: {name} must grow from min to max, "
                f"it is {format_shape(low)}, {format_shape(best)}, {format_shape(high)}"
            )
    return problems


def longest_sequence(profile: Profile, inputs: Mapping[str, Declared]) -> int:
    """Return the longest sequence that a profile allows: the axis ``seq``, or the second of two axes without names."""
    found = [0]
    for name, shape in profile.max.items():
        declared = inputs.get(name, ())
        if len(declared) != len(shape):
            continue
        named = [size for axis, size in zip(declared, shape, strict=True) if axis == "seq"]
        unnamed = [shape[1]] if len(shape) == 2 and not any(isinstance(axis, str) for axis in declared) else []
        found += named or unnamed
    return max(found)


def _length_problems(index: int, profile: Profile, inputs: Mapping[str, Declared], longest: int | None) -> list[str]:
    length = longest_sequence(profile, inputs)
    if longest is None or length <= longest:
        return []
    return [f"profile {index}, max: {length} tokens, but the model has {longest} positions"]


def format_shape(shape: Shape) -> str:
    """Format a shape: ``8x128``."""
    return "x".join(map(str, shape))


def format_shapes(shapes: Mapping[str, Shape]) -> str:
    """Format shapes as trtexec takes them: ``input_ids:8x128,attention_mask:8x128``."""
    return ",".join(f"{name}:{format_shape(shape)}" for name, shape in shapes.items())
