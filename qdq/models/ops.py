"""Matrix product and addition as modules, so that each use has a name in the model.

Quantization replaces modules by their type, and cannot replace a bare ``torch.matmul`` or ``+``. The modules have no
parameters and add nothing to a state dict.
"""

import torch
from torch import Tensor, nn


class MatMul(nn.Module):
    """``input @ other``.

    Args:
        transpose_other: Whether the last two axes of ``other`` are transposed first.
    """

    def __init__(self, transpose_other: bool = False) -> None:
        super().__init__()
        self.transpose_other = transpose_other

    def forward(self, input: Tensor, other: Tensor) -> Tensor:  # noqa: A002 - torch's own names for the operands
        """Return ``(..., n, m)`` for ``(..., n, k)`` and ``(..., k, m)``, or ``(..., m, k)`` if transposed."""
        return torch.matmul(input, other.transpose(-1, -2) if self.transpose_other else other)

    def extra_repr(self) -> str:
        """Return the setting, for ``print(model)``."""
        return f"transpose_other={self.transpose_other}"


class Add(nn.Module):
    """Residual addition: ``input`` is the branch, ``other`` the skip connection."""

    def forward(self, input: Tensor, other: Tensor) -> Tensor:  # noqa: A002 - torch's own names for the operands
        """Return the sum of two tensors ``(batch, seq, hidden)``."""
        return input + other
