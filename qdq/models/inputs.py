"""Checks of the arguments of a model. None of them runs while a graph is captured.

Values (token ids, labels) are compared with their limits on the CPU only, because on an accelerator every call would
have to wait for the device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from qdq.errors import DataError


class InputError(DataError, ValueError):
    """An argument of a model's ``forward`` does not fit the model. The message names the value and the limit."""


def is_tracing() -> bool:
    """Return whether torch.export, torch.compile or torch.jit.trace is capturing a graph."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def check_range(name: str, values: Tensor, limit: int, *, what: str, ignored: int | None = None) -> None:
    """Check that all values are whole numbers in ``[0, limit)``.

    Args:
        name: The name of the argument.
        values: Token ids, positions or labels.
        limit: The number of allowed values.
        what: What the values number, for the message.
        ignored: One more value that is allowed.

    Raises:
        InputError: A value is out of range, or the dtype is not integer.
    """
    if is_tracing() or values.device.type != "cpu" or values.numel() == 0:
        return
    if values.is_floating_point() or values.dtype == torch.bool:
        raise InputError(f"{name} has dtype {values.dtype}, must be whole numbers (torch.int64)")
    wrong = (values < 0) | (values >= limit)
    if ignored is not None:
        wrong &= values != ignored
    if wrong.any():
        also = "" if ignored is None else f" (or {ignored}, ignored)"
        found = sorted({*values[wrong].tolist()})
        shown = ", ".join(map(str, found[:5])) + (", ..." if len(found) > 5 else "")
        raise InputError(f"{name} must be between 0 and {limit - 1}{also}, {what}; found {shown}")


def check_shape(name: str, tensor: Tensor, allowed: Sequence[tuple[int, ...]]) -> None:
    """Check that a tensor has one of the allowed shapes.

    Args:
        name: The name of the argument.
        tensor: Its value.
        allowed: The allowed shapes. A first axis of 1 is allowed as well, because it broadcasts over the batch.

    Raises:
        InputError: The tensor has another shape.
    """
    if is_tracing():
        return
    shape = tuple(tensor.shape)
    if not any(shape == option or (shape[:1] == (1,) and shape[1:] == option[1:]) for option in allowed):
        wanted = " or ".join(str(list(option)) for option in allowed)
        raise InputError(f"{name} has shape {list(shape)}, must be {wanted}")
