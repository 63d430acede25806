"""The stack of transformer layers that all families share."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qdq.models.attention import Attention
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

    def __init__(
        self, attention: Attention, feed_forward: FeedForward, *, cross_attention: Attention | None = None
    ) -> None:
        super().__init__()
        self.attention = attention
        self.cross_attention = cross_attention
        self.feed_forward = feed_forward

    def blocks(self) -> Iterator[Attention | FeedForward]:
        """Yield the blocks in the order of the computation."""
        yield self.attention
        if self.cross_attention is not None:
            yield self.cross_attention
        yield self.feed_forward

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
    """One layer module per depth, and the final norm of the pre-norm families.

    Depths that repeat a layer (ALBERT) have modules of their own which share the parameters, so that each depth can be
    observed and wrapped by itself while every weight exists once.

    Args:
        layers: One for every depth.
        norm: Behind the last layer.
        norm_in_hidden_states: Whether the last entry of ``hidden_states`` has passed ``norm``.
        repeats: For every depth the first one whose layer it repeats; None where all are different.
        layers_per_state: Layers that count as one entry of ``hidden_states``.
        mask_rows: For every depth the row of a head mask that it gets; None for its own.
    """

    def __init__(
        self,
        layers: Sequence[Layer],
        *,
        norm: nn.Module | None = None,
        norm_in_hidden_states: bool = True,
        repeats: Sequence[int] | None = None,
        layers_per_state: int = 1,
        mask_rows: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        own = range(len(layers))
        self.repeats = list(own if repeats is None else repeats)
        self.layers = nn.ModuleList(layers)
        self.norm = norm
        self.norm_in_hidden_states = norm_in_hidden_states
        self.layers_per_state = layers_per_state
        self.mask_rows = list(own if mask_rows is None else mask_rows)
        self.checkpointing = False
        self.share()

    def blocks(self) -> Iterator[Attention | FeedForward]:
        """Yield the blocks of all layers in the order of the computation."""
        for layer in self.layers:
            yield from cast("Layer", layer).blocks()

    def share(self) -> None:
        """Make depths that repeat a layer use the very parameters of its first depth."""
        for depth, first in enumerate(self.repeats):
            if depth != first:
                for name, module in self.layers[first].named_modules():
                    for key, parameter in module._parameters.items():
                        self.layers[depth].get_submodule(name).register_parameter(key, parameter)

    def arguments(self, call: Call, depth: int) -> tuple[Call, Tensor | None, Tensors | None]:
        """Return what the layer at ``depth`` gets besides the hidden states: its part of ``call``.

        Whoever runs layers one by one asks here, so that layers may differ in their masks.
        """
        head_mask = None if call.head_mask is None else call.head_mask[self.mask_rows[depth]]
        return call, head_mask, None if call.past is None else call.past[depth]

    def forward(self, hidden: Tensor, call: Call) -> BaseOutput:
        """Run all layers on the embeddings ``(b, s, hidden)``."""
        states, used = [hidden], []
        for depth, layer in enumerate(self.layers):
            given = hidden, *self.arguments(call, depth)
            if self.checkpointing and self.training:
                hidden, *others = checkpoint(layer, *given, use_reentrant=False)
            else:
                hidden, *others = layer(*given)
            used.append(others)
            if call.output_hidden_states and (depth + 1) % self.layers_per_state == 0:
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
