"""The stack of transformer layers that all families share."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qdq.models.attention import Attention, AttentionImplementation
from qdq.models.feed_forward import FeedForward
from qdq.models.inputs import InputError

if TYPE_CHECKING:
    from qdq.models.config import ModelConfig
    from qdq.models.outputs import Cache, Tensors

__all__ = ["Encoder", "EncoderOutput", "Layer"]


class Layer(nn.Module):
    """Attention, optional cross-attention, feed-forward; each with its own residual."""

    def __init__(self, config: ModelConfig, attn_implementation: AttentionImplementation = "eager") -> None:
        super().__init__()
        self.attention = attention(config, cross=False, implementation=attn_implementation)
        self.cross_attention = (
            attention(config, cross=True, implementation=attn_implementation) if config.add_cross_attention else None
        )
        self.feed_forward = FeedForward(
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            hidden_act=config.hidden_act,
            dropout=config.hidden_dropout_prob if config.switches.feed_forward_dropout else 0.0,
            eps=config.layer_norm_eps,
            norm_first=config.switches.norm_first,
            chunk_size=config.chunk_size_feed_forward if config.switches.chunking else 0,
        )

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        *,
        head_mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        past: Tensors | None = None,
        need_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensors]:
        """Hidden states ``(batch, seq, hidden)``, own weights, cross weights, and the 2 or 4 tensors to cache."""
        own = None if past is None else (past[0], past[1])
        cache: Tensors
        hidden, weights, cache = self.attention(hidden, mask, head_mask=head_mask, past=own, need_weights=need_weights)
        cross_weights = None
        if memory is not None:
            if self.cross_attention is None:
                raise InputError(
                    "encoder_hidden_states given, but the model has no cross-attention: set add_cross_attention"
                )
            crossed = (past[2], past[3]) if past is not None and len(past) == 4 else None
            hidden, cross_weights, cross_cache = self.cross_attention(
                hidden, memory_mask, head_mask=head_mask, memory=memory, past=crossed, need_weights=need_weights
            )
            cache = (*cache, *cross_cache)
        return self.feed_forward(hidden), weights, cross_weights, cache


def attention(config: ModelConfig, *, cross: bool, implementation: AttentionImplementation) -> Attention:
    """The attention block that ``config`` describes."""
    absolute = cross and not config.switches.relative_cross_attention
    return Attention(
        hidden_size=config.hidden_size,
        num_heads=config.num_attention_heads,
        head_size=config.head_size,
        dropout=config.attention_probs_dropout_prob,
        output_dropout=config.hidden_dropout_prob,
        eps=config.layer_norm_eps,
        norm_first=config.switches.norm_first,
        cross=cross,
        position_type="absolute" if absolute else config.position_embedding_type,
        max_positions=config.max_position_embeddings,
        relative_scaled=config.switches.relative_scores_scaled,
        relative_with_cache=config.switches.relative_with_cache,
        implementation=implementation,
    )


@dataclass
class EncoderOutput:
    """Last hidden state ``(batch, seq, hidden)`` and whatever else was asked for."""

    hidden: Tensor
    cache: Cache | None = None
    hidden_states: Tensors | None = None
    attentions: Tensors | None = None
    cross_attentions: Tensors | None = None


class Encoder(nn.Module):
    """One layer module per depth, in ``config.layer_order``, and the final LayerNorm of the pre-norm families.

    Depths that repeat a layer (ALBERT) have modules of their own which share the parameters, so that each depth can be
    observed and wrapped by itself while every weight exists once.
    """

    def __init__(self, config: ModelConfig, attn_implementation: AttentionImplementation = "eager") -> None:
        super().__init__()
        order = config.layer_order
        self.first_depth = [order.index(layer) for layer in order]
        self.layers = nn.ModuleList()
        for depth, first in enumerate(self.first_depth):
            # A repeated layer needs no memory of its own: `share` hands it the parameters of the first.
            with torch.device("meta") if depth != first else nullcontext():
                self.layers.append(Layer(config, attn_implementation))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.switches.final_norm else None
        self.norm_in_hidden_states = config.switches.final_norm_in_hidden_states
        # A block is what counts as one entry of hidden_states: one layer, or the layers of one ALBERT group.
        self.block = config.inner_group_num if config.switches.shared_layers else 1
        self.mask_rows = _mask_rows(config)
        self.checkpointing = False
        self.share()

    def share(self) -> None:
        """Make depths that repeat a layer use the very parameters of its first depth."""
        for depth, first in enumerate(self.first_depth):
            if depth != first:
                for name, module in self.layers[first].named_modules():
                    for key, parameter in module._parameters.items():
                        self.layers[depth].get_submodule(name).register_parameter(key, parameter)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        *,
        head_mask: Tensor | None = None,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        past: Cache | None = None,
        use_cache: bool = False,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
    ) -> EncoderOutput:
        """Run all layers; ``head_mask`` is ``(layers, 1, heads, 1, 1)``, the masks are additive."""
        states, attentions, cross_attentions, cache = [hidden], [], [], []
        for depth, layer in enumerate(self.layers):
            hidden, weights, cross_weights, used = self._run(
                layer,
                hidden,
                mask,
                head_mask=None if head_mask is None else head_mask[self.mask_rows[depth]],
                memory=memory,
                memory_mask=memory_mask,
                past=None if past is None else past[depth],
                need_weights=output_attentions,
            )
            if output_attentions:
                attentions.append(weights)
                cross_attentions.append(cross_weights)
            if use_cache:
                cache.append(used)
            if output_hidden_states and (depth + 1) % self.block == 0:
                states.append(hidden)
        if self.norm is not None:
            hidden = self.norm(hidden)
            if output_hidden_states and self.norm_in_hidden_states:
                states[-1] = hidden
        return EncoderOutput(
            hidden,
            cache=tuple(cache) if use_cache else None,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            cross_attentions=tuple(cross_attentions) if output_attentions and memory is not None else None,
        )

    def _run(self, layer: nn.Module, *arguments: Any, **options: Any) -> Any:
        if self.checkpointing and self.training:
            return checkpoint(layer, *arguments, use_reentrant=False, **options)
        return layer(*arguments, **options)


def _mask_rows(config: ModelConfig) -> list[int]:
    """Row of the head mask for every depth.

    ALBERT gives each group the rows of its first repetitions, one per inner layer; all repetitions use the same.
    """
    if not config.switches.shared_layers:
        return list(range(config.num_hidden_layers))
    per_group = config.num_hidden_layers // config.num_hidden_groups
    return [group * per_group + inner for group, inner in config.layer_order]
