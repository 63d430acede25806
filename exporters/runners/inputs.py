"""Check the inputs of a model against what the model declares."""

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
    """Describe an input as the model declares it.

    Args:
        name: Name of the input.
        dtype: Type of its elements.
        shape: Its dimensions. A free dimension is its name, or None without a name.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]


def missing_inputs(names: Sequence[str], inputs: Mapping[str, Any]) -> list[str]:
    """Return a problem for each of ``names`` that ``inputs`` lacks."""
    return [
        f"the input {name} is missing (given: {', '.join(inputs) or 'none'})" for name in names if name not in inputs
    ]


def raise_problems(name: str, problems: Sequence[str]) -> None:
    """Raise if there are problems.

    Raises:
        DataError: If ``problems`` is not empty. It lists all of them and the name of the model.
    """
    if problems:
        raise DataError(describe_problems(name, problems))


def check_inputs(name: str, infos: Sequence[TensorInfo], inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the inputs that the model declares, as arrays.

    Args:
        name: Name of the model, for the message.
        infos: The inputs that the model declares.
        inputs: The inputs that are given. Others than the declared ones are ignored.

    Raises:
        DataError: If inputs do not fit. All problems are listed.
    """
    fed = {info.name: np.asarray(inputs[info.name]) for info in infos if info.name in inputs}
    problems = missing_inputs([info.name for info in infos], inputs)
    for info in infos:
        array = fed.get(info.name)
        if array is None:
            continue
        # Tokenizers give int64. The comparison refuses ids that would overflow.
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
