"""Matrix product and addition as modules, so that each place of a model has a name and can be replaced.

They hold no parameters and add nothing to a state dict.
"""

import torch
from torch import Tensor, nn


class MatMul(nn.Module):
    """``input @ other``, or ``input @ other^T`` over the last two axes with ``transpose_other``."""

    def __init__(self, transpose_other: bool = False) -> None:
        super().__init__()
        self.transpose_other = transpose_other

    def forward(self, input: Tensor, other: Tensor) -> Tensor:  # noqa: A002 - torch's own names for the operands
        """Product of ``(..., n, k)`` with ``(..., k, m)``, or with ``(..., m, k)`` when transposed: ``(..., n, m)``."""
        return torch.matmul(input, other.transpose(-1, -2) if self.transpose_other else other)

    def extra_repr(self) -> str:
        """The one setting, for ``print(model)``."""
        return f"transpose_other={self.transpose_other}"


class Add(nn.Module):
    """Residual addition: ``input`` is the branch, ``other`` the skip connection."""

    def forward(self, input: Tensor, other: Tensor) -> Tensor:  # noqa: A002 - torch's own names for the operands
        """Sum of two tensors of shape ``(batch, seq, hidden)``."""
        return input + other
