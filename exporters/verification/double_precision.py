"""Compute a model in float64 although its weights and inputs are float32."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

__all__ = ["DoublePrecision"]


class DoublePrecision(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside this mode every operator gets its float32 tensors in float64, and returns float64.

    The quantizing operators of qdq are exceptions: they compute as always, so that they return the same integers.
    Nothing is copied for long: each operator converts what it reads.

    Attributes:
        is_off: Whether to compute in the given types for now.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.is_off = False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operator."""
        kwargs = kwargs or {}
        if self.is_off:
            return func(*args, **kwargs)
        if func.namespace == "qdq":
            # A scale in float64 would divide in float64, and give other integers near a tie.
            args, kwargs = tree_map_only(torch.Tensor, _narrowed, (args, kwargs))
            return func(*args, **kwargs)
        # Writing into a widened copy would be lost.
        assert not (func._schema.is_mutable and args[0].dtype is torch.float32), f"{func} writes into a float32 tensor"
        args, kwargs = tree_map_only(torch.Tensor, _widened, (args, kwargs))
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return func(*args, **kwargs)


def _widened(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.double() if tensor.dtype is torch.float32 else tensor


def _narrowed(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype is torch.float64 else tensor
