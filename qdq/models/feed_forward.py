"""The position-wise feed-forward block with its residual."""

import torch
from torch import Tensor, nn

from qdq.models.activations import activation
from qdq.models.config import ModelConfig
from qdq.models.inputs import InputError, is_tracing
from qdq.models.ops import Add


class FeedForward(nn.Module):
    """Two linears around an activation, then residual and LayerNorm.

    ``chunk_size_feed_forward`` > 0 computes the sequence in pieces of that length, which saves memory and changes no
    number; exports ignore it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        switches = config.switches
        self.norm_first = switches.norm_first
        self.chunk_size = config.chunk_size_feed_forward if switches.chunking else 0
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.activation = activation(config.hidden_act)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob if switches.feed_forward_dropout else 0.0)
        self.add = Add()
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(self, hidden: Tensor) -> Tensor:
        """``(batch, seq, hidden)`` -> ``(batch, seq, hidden)``."""
        if not self.chunk_size or is_tracing():
            return self._block(hidden)
        length, size = hidden.shape[1], self.chunk_size
        if length % size:
            raise InputError(f"a sequence of {length} tokens is not a multiple of chunk_size_feed_forward {size}")
        return torch.cat([self._block(chunk) for chunk in torch.split(hidden, size, dim=1)], dim=1)

    def _block(self, hidden: Tensor) -> Tensor:
        branch = self.up(self.norm(hidden) if self.norm_first else hidden)
        branch = self.dropout(self.down(self.activation(branch)))
        total: Tensor = self.add(branch, hidden)
        return total if self.norm_first else self.norm(total)
