"""What a model is given, held against what it declares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from qdq.errors import DataError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

__all__ = ["TensorInfo", "check_inputs", "missing_inputs", "raise_problems"]


@dataclass(frozen=True)
class TensorInfo:
    """An input as the model declares it. A free dimension of ``shape`` is its name, or None when it has none."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]


def missing_inputs(names: Sequence[str], inputs: Mapping[str, Any]) -> list[str]:
    """A problem for each of ``names`` that is not given."""
    return [
        f"the input {name} is missing (given: {', '.join(inputs) or 'none'})" for name in names if name not in inputs
    ]


def raise_problems(name: str, problems: Sequence[str]) -> None:
    """Nothing where there are no problems.

    Raises:
        DataError: with all of them, and the name of the model.
    """
    if problems:
        raise DataError(describe_problems(name, problems))


def check_inputs(name: str, infos: Sequence[TensorInfo], inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The inputs the model has, as arrays.

    Args:
        name: of the model, for the message.
        infos: what it declares.
        inputs: what it is given; more than it declares is ignored.

    Raises:
        DataError: with everything that does not fit.
    """
    fed = {info.name: np.asarray(inputs[info.name]) for info in infos if info.name in inputs}
    problems = missing_inputs([info.name for info in infos], inputs)
    for info in infos:
        array = fed.get(info.name)
        if array is None:
            continue
        if str(array.dtype) == "int64" and str(info.dtype) == "int32" and np.array_equal(array, array.astype(np.int32)):
            array = fed[info.name] = array.astype(np.int32)
        if array.dtype != info.dtype:
            problems.append(f"the input {info.name} is {array.dtype}, the model takes {info.dtype}")
        if array.ndim != len(info.shape) or any(
            isinstance(size, int) and size != given for size, given in zip(info.shape, array.shape, strict=True)
        ):
            declared = ", ".join("?" if size is None else str(size) for size in info.shape)
            problems.append(f"the input {info.name} has the shape {array.shape}, the model takes ({declared})")
    raise_problems(name, problems)
    return fed
