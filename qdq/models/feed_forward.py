"""The feed-forward block with its residual, which computes every position by itself."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from qdq.models.dataflow import LinearRead, Origin, block_input_read
from qdq.models.inputs import InputError, is_tracing
from qdq.models.ops import Add


class FeedForward(nn.Module):
    """Linear layer, activation, linear layer, residual addition and norm.

    Args:
        hidden: Width of the hidden states.
        intermediate: Width between the two linear layers.
        activation: The function between the two linear layers.
        norm: Normalizes the sum with the residual, or the input if ``norm_first``. None leaves the norm out.
        norm_first: Whether the block is pre-norm.
        dropout: Dropout after the second linear layer.
        bias: Whether the linear layers have biases.
        chunk_size: Length of the pieces in which the sequence is computed, to save memory; the numbers are the same.
            0 computes it whole, and so do exports.
    """

    def __init__(
        self,
        hidden: int,
        intermediate: int,
        *,
        activation: nn.Module,
        norm: nn.Module | None,
        norm_first: bool = False,
        dropout: float = 0.0,
        bias: bool = True,
        chunk_size: int = 0,
    ) -> None:
        super().__init__()
        self.norm_first = norm_first
        self.chunk_size = chunk_size
        self.up = nn.Linear(hidden, intermediate, bias=bias)
        self.activation = activation
        self.down = nn.Linear(intermediate, hidden, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.add = Add()
        self.norm = norm

    def forward(self, hidden: Tensor) -> Tensor:
        """Return the new hidden states ``(batch, seq, hidden)``.

        Raises:
            InputError: The length of the sequence is not a multiple of ``chunk_size``.
        """
        # A graph with chunks would hold the length it was captured with.
        if not self.chunk_size or is_tracing():
            return self._compute(hidden)
        length, size = hidden.shape[1], self.chunk_size
        if length % size:
            raise InputError(f"a sequence of {length} tokens is not a multiple of chunk_size_feed_forward {size}")
        return torch.cat([self._compute(chunk) for chunk in torch.split(hidden, size, dim=1)], dim=1)

    def _compute(self, hidden: Tensor) -> Tensor:
        branch = self.up(self.norm(hidden) if self.norm is not None and self.norm_first else hidden)
        branch = self.dropout(self.down(self.activation(branch)))
        total: Tensor = self.add(branch, hidden)
        return total if self.norm is None or self.norm_first else self.norm(total)

    def linear_reads(self, origin: Origin) -> Iterator[LinearRead]:
        """Yield the tensors that the linear layers read.

        Args:
            origin: What computes the input of the block.
        """
        own_norm = self.norm if self.norm_first else None
        yield block_input_read((self.up,), origin, own_norm, self.add, branch=self.down)
        yield LinearRead(linears=(self.down,), activation=self.activation)

    def origin(self) -> Origin:
        """Return what computes the output of the block."""
        # The output of a pre-norm block is the sum with the residual.
        return Origin() if self.norm_first else Origin(norm=self.norm)
