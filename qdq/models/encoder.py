"""The stack of transformer layers that all families share."""

from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qdq.models.attention import Attention
from qdq.models.config import ModelConfig
from qdq.models.feed_forward import FeedForward
from qdq.models.inputs import InputError
from qdq.models.outputs import BaseOutput, Cache, Tensors


@dataclass(frozen=True, kw_only=True)
class Call:
    """What all layers of one forward pass share; shapes as in ``Attention``, with (l) layers. Masks are additive."""

    mask: Tensor | None = None
    head_mask: Tensor | None = None  # (l, 1, h, 1, 1)
    memory: Tensor | None = None
    memory_mask: Tensor | None = None
    past: Cache | None = None
    use_cache: bool = False
    output_attentions: bool = False
    output_hidden_states: bool = False


class Layer(nn.Module):
    """Attention, optional cross-attention, feed-forward; each with its own residual."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.cross_attention = Attention(config, cross=True) if config.add_cross_attention else None
        self.feed_forward = FeedForward(config)

    def forward(
        self, hidden: Tensor, call: Call, head_mask: Tensor | None = None, past: Tensors | None = None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensors | None]:
        """Hidden states ``(b, s, hidden)``, own weights, cross weights, and the 2 or 4 tensors to cache, if wanted.

        ``head_mask`` and ``past`` are this layer's part of those in ``call``.
        """
        options: dict[str, Any] = {"head_mask": head_mask, "need_weights": call.output_attentions}
        hidden, weights, cache = self.attention(hidden, call.mask, past=past and past[:2], **options)
        cross_weights = None
        if call.memory is not None:
            if self.cross_attention is None:
                raise InputError("encoder_hidden_states need cross-attention: set add_cross_attention")
            options |= {"memory": call.memory, "past": past[2:] or None if past else None}
            hidden, cross_weights, cross_cache = self.cross_attention(hidden, call.memory_mask, **options)
            cache += cross_cache
        return self.feed_forward(hidden), weights, cross_weights, cache if call.use_cache else None


class Encoder(nn.Module):
    """One layer module per depth, in ``config.layer_order``, and the final LayerNorm of the pre-norm families.

    Depths that repeat a layer (ALBERT) have modules of their own which share the parameters, so that each depth can be
    observed and wrapped by itself while every weight exists once.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        order = config.layer_order
        self.first_depth = [order.index(layer) for layer in order]
        self.layers = nn.ModuleList(Layer(config) for _ in order)
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

    def forward(self, hidden: Tensor, call: Call) -> BaseOutput:
        """Run all layers on the embeddings ``(b, s, hidden)``."""
        states, used = [hidden], []
        for depth, layer in enumerate(self.layers):
            head_mask = None if call.head_mask is None else call.head_mask[self.mask_rows[depth]]
            given = hidden, call, head_mask, None if call.past is None else call.past[depth]
            if self.checkpointing and self.training:
                hidden, *others = checkpoint(layer, *given, use_reentrant=False)
            else:
                hidden, *others = layer(*given)
            used.append(others)
            if call.output_hidden_states and (depth + 1) % self.block == 0:
                states.append(hidden)
        if self.norm is not None:
            hidden = self.norm(hidden)
            if call.output_hidden_states and self.norm_in_hidden_states:
                states[-1] = hidden
        attentions, cross_attentions, cache = zip(*used, strict=True)
        return BaseOutput(
            hidden,
            past_key_values=cache if call.use_cache else None,
            hidden_states=tuple(states) if call.output_hidden_states else None,
            attentions=attentions if call.output_attentions else None,
            cross_attentions=cross_attentions if call.output_attentions and call.memory is not None else None,
        )
