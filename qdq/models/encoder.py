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
    """The arguments that all layers of one forward pass share. Masks are additive.

    Shapes as in :class:`Attention`, and (l) layers.

    Args:
        mask: Mask of self-attention, broadcasts to ``(b, h, s, t)``.
        head_mask: ``(l, 1, h, 1, 1)``; a layer gets one row of it.
        memory: Hidden states of an encoder ``(b, t, hidden)``, for cross-attention.
        memory_mask: Mask of cross-attention, broadcasts to ``(b, h, s, t)``.
        past: The cache of earlier tokens; a layer gets one entry of it.
        use_cache: Whether to return the new cache.
        output_attentions: Whether to return attention weights.
        output_hidden_states: Whether to return the hidden states of every layer.
    """

    mask: Tensor | None = None
    head_mask: Tensor | None = None
    memory: Tensor | None = None
    memory_mask: Tensor | None = None
    past: Cache | None = None
    use_cache: bool = False
    output_attentions: bool = False
    output_hidden_states: bool = False


class Layer(nn.Module):
    """Self-attention, optional cross-attention, and feed-forward, each a block with a residual addition.

    Args:
        attention: Self-attention.
        feed_forward: The last block.
        cross_attention: Attention to another sequence, between the two. None leaves it out.
    """

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
        """Run the blocks.

        Args:
            hidden: ``(b, s, hidden)``.
            call: The arguments that all layers share.
            head_mask: This layer's row of ``call.head_mask``.
            past: This layer's entry of ``call.past``.

        Returns:
            Hidden states ``(b, s, hidden)``, the weights of self-attention and of cross-attention, and the tensors to
            cache: 2, or 4 with cross-attention. What ``call`` does not ask for is None.

        Raises:
            InputError: There is memory to attend to, but no cross-attention.
        """
        options: dict[str, Any] = {"head_mask": head_mask, "need_weights": call.output_attentions}
        hidden, weights, cache = self.attention(hidden, call.mask, past=past and past[:2], **options)
        cross_weights = None
        if call.memory is not None:
            if self.cross_attention is None:
                raise InputError("encoder_hidden_states need cross-attention: set add_cross_attention in the config")
            # A cache holds key and value of self-attention first, then those of cross-attention.
            options |= {"memory": call.memory, "past": past[2:] or None if past else None}
            hidden, cross_weights, cross_cache = self.cross_attention(hidden, call.memory_mask, **options)
            cache += cross_cache
        return self.feed_forward(hidden), weights, cross_weights, cache if call.use_cache else None


class Encoder(nn.Module):
    """A stack of layers, and the final norm of pre-norm families.

    A depth that repeats the layer of another one (ALBERT) has modules of its own that share the parameters. Each depth
    can therefore be wrapped and calibrated by itself, while every weight exists once.

    Args:
        layers: One layer for every depth.
        norm: Norm after the last layer. None leaves the norm out.
        norm_in_hidden_states: Whether the last entry of ``hidden_states`` is the output of ``norm``, or its input.
        repeats: For every depth, the first depth with the same layer. None if all layers are different.
        layers_per_state: Number of layers between two entries of ``hidden_states``.
        mask_rows: For every depth, its row of a head mask. None gives every depth the row of its own number.
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
        self.share_parameters()

    def blocks(self) -> Iterator[Attention | FeedForward]:
        """Yield the blocks of all layers in the order of the computation."""
        for layer in self.layers:
            yield from cast("Layer", layer).blocks()

    def share_parameters(self) -> None:
        """Give each depth that repeats a layer the parameters of the first depth with that layer."""
        for depth, first in enumerate(self.repeats):
            if depth != first:
                for name, module in self.layers[first].named_modules():
                    # Register them, instead of loading a state dict, so that both depths hold one and the same object.
                    for key, parameter in module._parameters.items():
                        self.layers[depth].get_submodule(name).register_parameter(key, parameter)

    def arguments(self, call: Call, depth: int) -> tuple[Call, Tensor | None, Tensors | None]:
        """Return the arguments of the layer at ``depth`` after the hidden states.

        Layer-wise refinement, which runs layers one by one, uses it too, so that layers may differ in their masks.
        """
        head_mask = None if call.head_mask is None else call.head_mask[self.mask_rows[depth]]
        return call, head_mask, None if call.past is None else call.past[depth]

    def forward(self, hidden: Tensor, call: Call) -> BaseOutput:
        """Run all layers on the embeddings ``(b, s, hidden)``, and return what ``call`` asks for."""
        states, used = [hidden], []
        for depth, layer in enumerate(self.layers):
            given = hidden, *self.arguments(call, depth)
            # Checkpointing saves memory for the backward pass only.
            if self.checkpointing and self.training:
                hidden, *others = checkpoint(layer, *given, use_reentrant=False)
            else:
                hidden, *others = layer(*given)
            used.append(others)
            # Upstream records one state for each repetition of a group, not one for each of its inner layers (ALBERT).
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
