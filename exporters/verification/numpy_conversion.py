"""Tensors as arrays for runners, and arrays of any type in one that numpy computes with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["to_float32", "to_numpy"]


def to_numpy(tensor: Tensor) -> np.ndarray:
    """``tensor`` for a runner; numpy itself has no bfloat16."""
    if tensor.dtype is not torch.bfloat16:
        array: np.ndarray = tensor.numpy()
        return array
    import ml_dtypes

    return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def to_float32(array: np.ndarray) -> np.ndarray:
    """Half precision in float32; bfloat16 is of a kind of its own in numpy."""
    return array if array.dtype.kind in "iub" or array.dtype == np.float64 else array.astype(np.float32)
