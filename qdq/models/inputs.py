"""Checks of what a caller hands to a model. None of them runs while a graph is being captured.

Values (token ids, labels) are compared with their limits on the CPU only: on an accelerator that would make every call
wait for the device.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from qdq.errors import DataError


class InputError(DataError, ValueError):
    """An argument of a model's ``forward`` that does not fit the model; names what was given and the limit."""


def is_tracing() -> bool:
    """Whether torch.export, torch.compile or torch.jit.trace is capturing a graph right now."""
    return torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None


def check_range(name: str, values: Tensor, limit: int, *, what: str, ignored: int | None = None) -> None:
    """Raise InputError unless all ``values`` are in ``[0, limit)`` or equal to ``ignored``."""
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
    """Raise InputError unless the shape of ``tensor`` is one of ``allowed``; a first axis of 1 stands for any batch."""
    if is_tracing():
        return
    shape = tuple(tensor.shape)
    if not any(shape == option or (shape[:1] == (1,) and shape[1:] == option[1:]) for option in allowed):
        wanted = " or ".join(str(list(option)) for option in allowed)
        raise InputError(f"{name} has shape {list(shape)}, must be {wanted}")
