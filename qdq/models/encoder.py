"""The stack of transformer layers that all families share."""

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qdq.models.attention import Attention
from qdq.models.config import ModelConfig
from qdq.models.feed_forward import FeedForward
from qdq.models.inputs import InputError
from qdq.models.outputs import BaseOutput, Cache, Tensors


class Layer(nn.Module):
    """Attention, optional cross-attention, feed-forward; each with its own residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.cross_attention = Attention(config, cross=True) if config.add_cross_attention else None
        self.feed_forward = FeedForward(config)

    def forward(
        self,
        hidden: Tensor,
        mask: Tensor | None = None,
        *,
        memory: Tensor | None = None,
        memory_mask: Tensor | None = None,
        past: Tensors | None = None,
        **options: Any,
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensors]:
        """Hidden states ``(batch, seq, hidden)``, own weights, cross weights, and the 2 or 4 tensors to cache.

        Both attentions get ``options``, the head mask and whether to return the weights.
        """
        hidden, weights, cache = self.attention(hidden, mask, past=past and past[:2], **options)
        if memory is None:
            return self.feed_forward(hidden), weights, None, cache
        if self.cross_attention is None:
            raise InputError("encoder_hidden_states need cross-attention: set add_cross_attention")
        options |= {"memory": memory, "past": past[2:] or None if past else None}
        hidden, cross_weights, cross_cache = self.cross_attention(hidden, memory_mask, **options)
        return self.feed_forward(hidden), weights, cross_weights, cache + cross_cache


class Encoder(nn.Module):
    """One layer module per depth, in ``config.layer_order``, and the final LayerNorm of the pre-norm families.

    Depths that repeat a layer (ALBERT) have modules of their own which share the parameters, so that each depth can be
    observed and wrapped by itself while every weight exists once.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        order = config.layer_order
        self.first_depth = [order.index(layer) for layer in order]
        self.layers = nn.ModuleList()
        for depth, first in enumerate(self.first_depth):
            # A repeated layer needs no memory of its own: `share` hands it the parameters of the first.
            with torch.device("meta") if depth != first else nullcontext():
                self.layers.append(Layer(config))
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if config.switches.final_norm else None
        self.norm_in_hidden_states = config.switches.final_norm_in_hidden_states
        # A block is what counts as one entry of hidden_states: one layer, or the layers of one ALBERT group.
        self.block = config.inner_group_num if config.switches.shared_layers else 1
        # ALBERT gives each group the head masks of its first depths, one per inner layer, for all repetitions.
        per_group = config.num_hidden_layers // config.num_hidden_groups
        self.mask_rows = [index[0] * per_group + index[1] if len(index) > 1 else index[0] for index in order]
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
    ) -> BaseOutput:
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
        return BaseOutput(
            hidden,
            past_key_values=tuple(cache) if use_cache else None,
            hidden_states=tuple(states) if output_hidden_states else None,
            attentions=tuple(attentions) if output_attentions else None,
            cross_attentions=tuple(cross_attentions) if output_attentions and memory is not None else None,
        )

    def _run(self, layer: nn.Module, *arguments: Any, **options: Any) -> Any:
        if self.checkpointing and self.training:
            return checkpoint(layer, *arguments, use_reentrant=False, **options)
        return layer(*arguments, **options)
