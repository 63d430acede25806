"""Convert tensors to arrays for runners, and arrays of any type to one that numpy computes with."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["to_float32", "to_numpy"]


def to_numpy(tensor: Tensor) -> np.ndarray:
    """Convert ``tensor`` to an array of the same type. bfloat16, which numpy lacks, is that of ml_dtypes."""
    if tensor.dtype is not torch.bfloat16:
        array: np.ndarray = tensor.numpy()
        return array
    import ml_dtypes

    return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def to_float32(array: np.ndarray) -> np.ndarray:
    """Convert half precision to float32; integers, booleans and float64 stay as they are."""
    return array if array.dtype.kind in "iub" or array.dtype == np.float64 else array.astype(np.float32)
