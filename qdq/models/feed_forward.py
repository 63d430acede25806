"""The position-wise feed-forward block with its residual."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from qdq.models.dataflow import LinearRead, Origin, read_of_block
from qdq.models.inputs import InputError, is_tracing
from qdq.models.ops import Add


class FeedForward(nn.Module):
    """Two linears around an activation, then residual and norm.

    Args:
        hidden: Width of the hidden states.
        intermediate: Width between the two linears.
        activation: The function between them.
        norm: Normalizes the sum with the residual, or with ``norm_first`` the input; None for no norm.
        norm_first: Whether the block is pre-norm.
        dropout: Of the second linear.
        bias: Whether the linears have biases.
        chunk_size: With more than 0, computes the sequence in pieces of that length, which saves memory and changes no
            number; exports ignore it.
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
        """``(batch, seq, hidden)`` -> ``(batch, seq, hidden)``."""
        if not self.chunk_size or is_tracing():
            return self._block(hidden)
        length, size = hidden.shape[1], self.chunk_size
        if length % size:
            raise InputError(f"a sequence of {length} tokens is not a multiple of chunk_size_feed_forward {size}")
        return torch.cat([self._block(chunk) for chunk in torch.split(hidden, size, dim=1)], dim=1)

    def _block(self, hidden: Tensor) -> Tensor:
        branch = self.up(self.norm(hidden) if self.norm is not None and self.norm_first else hidden)
        branch = self.dropout(self.down(self.activation(branch)))
        total: Tensor = self.add(branch, hidden)
        return total if self.norm is None or self.norm_first else self.norm(total)

    def linear_reads(self, origin: Origin) -> Iterator[LinearRead]:
        """Yield what each linear layer reads; ``origin`` makes the input of the block."""
        own_norm = self.norm if self.norm_first else None
        yield read_of_block((self.up,), origin, own_norm, self.add, branch=self.down)
        yield LinearRead(linears=(self.down,), activation=self.activation)

    def origin(self) -> Origin:
        """Return what makes the output of the block."""
        return Origin() if self.norm_first else Origin(norm=self.norm)
