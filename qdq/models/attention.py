"""Multi-head attention with its residual: self, causal and cross, with cache, relative positions and head masks.

Source: Vaswani et al. 2017 (attention), Shaw et al. 2018 (relative_key), Huang et al. 2020 (relative_key_query).
"""

import math
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor, nn

from qdq.models.config import ModelConfig
from qdq.models.inputs import InputError, is_tracing
from qdq.models.ops import Add, MatMul
from qdq.models.outputs import Tensors
from qdq.models.uninitialized import Uninitialized

AttentionImplementation = Literal["eager", "sdpa"]
_PROJECTIONS = ("query", "key", "value", "output")


class Attention(nn.Module):
    """Attention block: projections, scores, softmax, context, output projection, residual and LayerNorm.

    ``implementation`` "eager" computes scores and context in the modules of these names; "sdpa" uses torch's fused
    function wherever a call needs neither weights, nor a head mask, nor relative positions.

    Shapes: (b) batch, (s) new tokens, (t) keys, (h) heads, (d) head size.
    """

    def __init__(self, config: ModelConfig, *, cross: bool = False) -> None:
        super().__init__()
        switches = config.switches
        self.heads = list(range(config.num_attention_heads))
        self.head_size = config.head_size
        self.norm_first = switches.norm_first
        self.max_positions = config.max_position_embeddings
        self.relative_scaled = switches.relative_scores_scaled
        self.relative_with_cache = switches.relative_with_cache
        absolute = cross and not switches.relative_cross_attention
        self.position_type = "absolute" if absolute else config.position_embedding_type
        self.implementation: AttentionImplementation = "eager"
        self.same_input: tuple[tuple[str, ...], ...] = (("key", "value"),) if cross else (("query", "key", "value"),)

        hidden, width = config.hidden_size, len(self.heads) * self.head_size
        self.query, self.key, self.value = (nn.Linear(hidden, width) for _ in range(3))
        relative = self.position_type != "absolute"
        self.distance = nn.Embedding(2 * self.max_positions - 1, self.head_size) if relative else None
        self.scores = MatMul(transpose_other=True)
        self.dropout = nn.Dropout(config.attention_probs_dropout_prob)
        self.context = MatMul()
        self.output = nn.Linear(width, hidden)
        self.output_dropout = nn.Dropout(config.hidden_dropout_prob)
        self.add = Add()
        self.norm = nn.LayerNorm(hidden, eps=config.layer_norm_eps)

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
        """Attend from ``hidden`` to itself, or to ``memory`` when that is given.

        Args:
            hidden: ``(b, s, hidden)``.
            mask: additive, broadcast to ``(b, h, s, t)``.
            head_mask: factor on the weights, broadcast to ``(b, h, s, t)``.
            memory: states of an encoder ``(b, t, hidden)``.
            past: cached key and value ``(b, h, p, d)``: extended for self attention, used as they are for ``memory``.
            need_weights: return the weights, after dropout and head mask.

        Returns:
            The new hidden states ``(b, s, hidden)``, the weights ``(b, h, s, t)`` or None, and key and value used.
        """
        query_input = self.norm(hidden) if self.norm_first else hidden
        source = query_input if memory is None else memory
        query = self._split(self.query(query_input))
        if memory is not None and past is not None:
            key, value = past
        else:
            key, value = self._split(self.key(source)), self._split(self.value(source))
            if past is not None:
                key, value = torch.cat([past[0], key], dim=2), torch.cat([past[1], value], dim=2)

        weights: Tensor | None = None
        if self.implementation == "sdpa" and not need_weights and head_mask is None and self.distance is None:
            probability = self.dropout.p if self.training else 0.0
            context = nn.functional.scaled_dot_product_attention(query, key, value, mask, dropout_p=probability)
        else:
            weights = self._weights(query, key, mask, cached=past is not None)
            if head_mask is not None:
                weights = weights * head_mask
            context = self.context(weights, value)

        branch = self.output_dropout(self.output(context.transpose(1, 2).flatten(2)))
        hidden = self.add(branch, hidden)
        if not self.norm_first:
            hidden = self.norm(hidden)
        return hidden, weights if need_weights else None, (key, value)

    def _split(self, projected: Tensor) -> Tensor:
        """``(b, s, h * d)`` -> ``(b, h, s, d)``."""
        return projected.view(*projected.shape[:2], len(self.heads), self.head_size).transpose(1, 2)

    def _weights(self, query: Tensor, key: Tensor, mask: Tensor | None, *, cached: bool) -> Tensor:
        """Softmax of scaled, masked scores, after dropout: ``(b, h, s, t)``."""
        scores = self.scores(query, key)
        if self.distance is not None and self.relative_scaled:
            scores = scores + self._relative(self.distance, query, key, cached=cached)
        scores = scores / math.sqrt(self.head_size)
        if mask is not None:
            scores = scores + mask
        if self.distance is not None and not self.relative_scaled:
            scores = scores + self._relative(self.distance, query, key, cached=cached)
        weights: Tensor = self.dropout(torch.softmax(scores, dim=-1))
        return weights

    def _relative(self, distance: nn.Module, query: Tensor, key: Tensor, *, cached: bool) -> Tensor:
        """Position terms of the scores, broadcast to ``(b, h, s, t)``."""
        new, total = query.shape[2], key.shape[2]
        if not is_tracing():
            if cached and not self.relative_with_cache:
                raise InputError("relative positions cannot be used together with a cache in this family")
            if max(new, total) > (reach := self.max_positions):
                raise InputError(f"relative positions reach {reach} tokens, got {new} queries and {total} keys")
        # With a cache upstream measures every new query from the last position: exact for one new token at a time.
        left = torch.arange(new, device=query.device)[:, None] if not cached else total - 1
        right = torch.arange(total, device=query.device)[None, :]
        table = distance(left - right + (self.max_positions - 1)).to(query.dtype)  # (s or 1, t, d)
        terms = torch.einsum("bhld,lrd->bhlr", query, table)
        if self.position_type == "relative_key_query":
            terms = terms + torch.einsum("bhrd,lrd->bhlr", key, table)
        return terms

    def replaced(self) -> str | None:
        """The first of the projections that is no plain linear any more."""
        return next((name for name in _PROJECTIONS if type(getattr(self, name)) is not nn.Linear), None)

    def prune(self, heads: Iterable[int]) -> None:
        """Remove ``heads``, counted as before any pruning: rows of the projections, columns of the output."""
        gone = set(heads) & set(self.heads)
        if not gone:
            return
        kept = [place for place, head in enumerate(self.heads) if head not in gone]
        index = torch.tensor([place * self.head_size + i for place in kept for i in range(self.head_size)])
        for name in _PROJECTIONS:
            setattr(self, name, _select(getattr(self, name), index, dim=int(name == "output")))
        self.heads = [self.heads[place] for place in kept]


def _select(linear: nn.Linear, index: Tensor, *, dim: int) -> nn.Linear:
    """A linear with only the rows (``dim=0``) or columns (``dim=1``) at ``index``."""
    index = index.to(linear.weight.device)
    weight = linear.weight.detach().index_select(dim, index)
    with Uninitialized():
        small = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
    small.weight = nn.Parameter(weight, requires_grad=linear.weight.requires_grad)
    small.bias = linear.bias if dim == 1 else nn.Parameter(linear.bias.detach()[index], linear.bias.requires_grad)
    return small
