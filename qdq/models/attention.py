"""The attention block: multi-head attention with its residual, for encoders and decoders.

Source: Vaswani et al. 2017, arXiv 1706.03762.
"""

import math
from collections.abc import Iterable, Iterator
from typing import Literal

import torch
from torch import Tensor, nn

from qdq.models.dataflow import LinearRead, Origin, block_input_read
from qdq.models.ops import Add, MatMul
from qdq.models.outputs import Tensors
from qdq.models.relative_positions import RelativePositions
from qdq.models.uninitialized import Uninitialized

AttentionImplementation = Literal["eager", "sdpa"]
_PROJECTIONS = ("query", "key", "value", "output")


class Attention(nn.Module):
    """Projections, scores, softmax, context, output projection, residual addition and norm.

    With ``implementation`` "eager", scores and context are computed by the modules of these names, which quantization
    replaces. With "sdpa", torch's fused function computes them, unless a call needs the weights, a head mask or
    relative positions, which the function does not offer.

    Shapes: (b) batch, (s) new tokens, (t) keys, (h) heads, (d) head size.

    Args:
        hidden: Width of the hidden states.
        heads: Number of heads, which divide the width evenly.
        norm: Normalizes the sum with the residual, or the input if ``norm_first``. None leaves the norm out.
        norm_first: Whether the block is pre-norm.
        dropout: Dropout of the attention weights.
        output_dropout: Dropout after the output projection.
        bias: Whether the projections have biases.
        relative: Relative positions in the scores, if any.
        cross: Whether keys and values come from another sequence.
    """

    def __init__(
        self,
        hidden: int,
        heads: int,
        *,
        norm: nn.Module | None,
        norm_first: bool = False,
        dropout: float = 0.0,
        output_dropout: float = 0.0,
        bias: bool = True,
        relative: RelativePositions | None = None,
        cross: bool = False,
    ) -> None:
        super().__init__()
        self.heads = list(range(heads))  # the numbers of the heads that are left, as counted before any pruning
        self.head_size = hidden // heads
        self.norm_first = norm_first
        self.cross = cross
        self.relative = relative
        self.implementation: AttentionImplementation = "eager"
        # Quantization gives the projections of a group one input quantizer, since they read the same tensor.
        self.same_input: tuple[tuple[str, ...], ...] = (("key", "value"),) if cross else (("query", "key", "value"),)

        width = heads * self.head_size
        self.query, self.key, self.value = (nn.Linear(hidden, width, bias=bias) for _ in range(3))
        self.distance = None if relative is None else nn.Embedding(2 * relative.reach - 1, self.head_size)
        # The products and the addition are modules, so that each can be replaced by one with quantizers.
        self.scores = MatMul(transpose_other=True)
        self.dropout = nn.Dropout(dropout)
        self.context = MatMul()
        self.output = nn.Linear(width, hidden, bias=bias)
        self.output_dropout = nn.Dropout(output_dropout)
        self.add = Add()
        self.norm = norm

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        *,
        head_mask: Tensor | None = None,
        memory: Tensor | None = None,
        past: Tensors | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensors]:
        """Attend from ``hidden`` to itself, or to ``memory`` if it is given.

        Args:
            hidden: Hidden states ``(b, s, hidden)``.
            mask: Additive mask that broadcasts to ``(b, h, s, t)``.
            head_mask: Multiplies the weights; broadcasts to ``(b, h, s, t)``.
            memory: Hidden states of an encoder ``(b, t, hidden)``.
            past: Cached key and value ``(b, h, p, d)``. Self-attention extends them; attention to ``memory`` uses them
                unchanged.
            need_weights: Whether to return the weights, after dropout and head mask.

        Returns:
            The new hidden states ``(b, s, hidden)``, the weights ``(b, h, s, t)`` or None, and the key and value used.
        """
        query_input = self.norm(hidden) if self.norm is not None and self.norm_first else hidden
        source = query_input if memory is None else memory
        query = self._split_heads(self.query(query_input))
        # The memory of a decoder is the same in every step, so its cached projections are complete.
        if memory is not None and past is not None:
            key, value = past
        else:
            key, value = self._split_heads(self.key(source)), self._split_heads(self.value(source))
            if past is not None:
                key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)

        weights: Tensor | None = None
        if self.implementation == "sdpa" and not need_weights and head_mask is None and self.distance is None:
            probability = self.dropout.p if self.training else 0.0
            context = nn.functional.scaled_dot_product_attention(query, key, value, mask, dropout_p=probability)
        else:
            weights = self._attention_weights(query, key, mask, cached=past is not None)
            if head_mask is not None:
                weights = weights * head_mask
            context = self.context(weights, value)

        branch = self.output_dropout(self.output(context.transpose(1, 2).flatten(2)))
        hidden = self.add(branch, hidden)
        if self.norm is not None and not self.norm_first:
            hidden = self.norm(hidden)
        return hidden, weights if need_weights else None, (key, value)

    def _split_heads(self, projected: Tensor) -> Tensor:
        """Return ``(b, h, s, d)`` of ``(b, s, h * d)``."""
        return projected.view(*projected.shape[:2], len(self.heads), self.head_size).transpose(1, 2)

    def _attention_weights(self, query: Tensor, key: Tensor, mask: Tensor | None, *, cached: bool) -> Tensor:
        """Return the softmax of the scaled and masked scores, after dropout, ``(b, h, s, t)``."""
        scores = self.scores(query, key)
        terms = None
        if self.relative is not None and self.distance is not None:
            terms = self.relative.terms(self.distance, query, key, cached=cached)
            # Families differ here: the terms are added before the division and the mask, or (ALBERT) after both.
            # Float addition is not associative, so each keeps the order of its upstream.
            if self.relative.scaled:
                scores = scores + terms
        scores = scores / math.sqrt(self.head_size)
        if mask is not None:
            scores = scores + mask
        if terms is not None and self.relative is not None and not self.relative.scaled:
            scores = scores + terms
        weights: Tensor = self.dropout(torch.softmax(scores, dim=-1))
        return weights

    def linear_reads(self, origin: Origin) -> Iterator[LinearRead]:
        """Yield the tensors that the linear layers read.

        Args:
            origin: What computes the input of the block.
        """
        own_norm = self.norm if self.norm_first else None
        first: tuple[nn.Linear, ...] = (self.query, self.key, self.value)
        if self.cross:  # the other sequence comes from outside the encoder, so its origin is not known
            yield LinearRead(linears=first[1:])
            first = first[:1]
        yield block_input_read(first, origin, own_norm, self.add, branch=self.output)
        yield LinearRead(linears=(self.output,), value=self.value, context=self.context)

    def origin(self) -> Origin:
        """Return what computes the output of the block."""
        # The output of a pre-norm block is the sum with the residual.
        return Origin() if self.norm_first else Origin(norm=self.norm)

    def replaced_projection(self) -> str | None:
        """Return the name of the first projection that is not a plain ``nn.Linear`` any more, or None."""
        return next((name for name in _PROJECTIONS if type(getattr(self, name)) is not nn.Linear), None)

    def prune(self, heads: Iterable[int]) -> None:
        """Remove heads: their rows of the projections, and their columns of the output projection.

        Args:
            heads: The heads to remove, as counted before any pruning. Heads that are gone already are ignored.
        """
        gone = set(heads) & set(self.heads)
        if not gone:
            return
        kept = [index for index, head in enumerate(self.heads) if head not in gone]
        rows = torch.tensor([index * self.head_size + i for index in kept for i in range(self.head_size)])
        for name in _PROJECTIONS:
            setattr(self, name, _select_features(getattr(self, name), rows, dim=int(name == "output")))
        self.heads = [self.heads[index] for index in kept]


def _select_features(linear: nn.Linear, index: Tensor, *, dim: int) -> nn.Linear:
    """Return a linear layer with only the output features (``dim=0``) or input features (``dim=1``) at ``index``."""
    index = index.to(linear.weight.device)
    weight = linear.weight.detach().index_select(dim, index)
    with Uninitialized():
        small = nn.Linear(weight.shape[1], weight.shape[0], bias=linear.bias is not None, device="meta")
    small.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    if linear.bias is not None:
        # A bias belongs to the output features, so removing input features keeps the very same parameter.
        small.bias = linear.bias if dim == 1 else nn.Parameter(linear.bias.detach()[index], linear.bias.requires_grad)
    return small
