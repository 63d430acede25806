"""The stack of layers: what each layer gets, and parameters that several depths share."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from qdq.models.attention import Attention
from qdq.models.encoder import Call, Encoder, Layer
from qdq.models.feed_forward import FeedForward

HIDDEN, HEADS = 8, 2


def layers(count: int) -> list[Layer]:
    return [
        Layer(
            Attention(HIDDEN, HEADS, norm=nn.LayerNorm(HIDDEN)),
            FeedForward(HIDDEN, 12, activation=nn.GELU(), norm=nn.LayerNorm(HIDDEN)),
        )
        for _ in range(count)
    ]


def test_each_layer_gets_its_row_of_the_head_mask_and_its_entry_of_the_cache() -> None:
    encoder = Encoder(layers(3))
    call = Call()
    assert encoder.arguments(call, 1) == (call, None, None)
    head_mask = torch.arange(3.0)[:, None, None, None, None].expand(3, 1, HEADS, 1, 1)
    past = tuple((torch.full((1, HEADS, 2, 4), float(depth)),) * 2 for depth in range(3))
    call = replace(call, head_mask=head_mask, past=past)
    for depth in range(3):
        common, row, entry = encoder.arguments(call, depth)
        assert common is call
        assert row is not None
        assert torch.equal(row, torch.full((1, HEADS, 1, 1), float(depth)))
        assert entry is past[depth]


def test_rows_of_a_head_mask_may_be_chosen() -> None:
    encoder = Encoder(layers(3), mask_rows=[2, 0, 0])
    call = Call(head_mask=torch.arange(3.0)[:, None, None, None, None])
    assert [float(encoder.arguments(call, depth)[1]) for depth in range(3)] == [2.0, 0.0, 0.0]


def test_layers_run_one_by_one_compute_what_the_encoder_does() -> None:
    encoder = Encoder(layers(3), mask_rows=[2, 1, 0])
    call = Call(
        mask=torch.zeros(2, 1, 1, 5).masked_fill(torch.arange(5) > 3, -1e9),
        head_mask=torch.rand(3, 1, HEADS, 1, 1),
        output_hidden_states=True,
    )
    states = [torch.randn(2, 5, HIDDEN)]
    for depth, layer in enumerate(encoder.layers):
        states.append(layer(states[-1], *encoder.arguments(call, depth))[0])
    result = encoder(states[0], call)
    assert all(torch.equal(a, b) for a, b in zip(result.hidden_states, states, strict=True))


def test_depths_that_repeat_a_layer_share_its_parameters_and_no_module() -> None:
    encoder = Encoder(layers(4), repeats=[0, 1, 0, 1])
    modules = [{id(module) for module in layer.modules()} for layer in encoder.layers]
    assert not modules[0] & modules[2]
    first, second, third, _ = ([id(p) for p in layer.parameters()] for layer in encoder.layers)
    assert first == third
    assert not set(first) & set(second)
    assert len(list(encoder.parameters())) == 2 * len(first)
    encoder.layers[0].feed_forward.up.bias = nn.Parameter(torch.ones(12))
    encoder.share_parameters()
    assert encoder.layers[2].feed_forward.up.bias is encoder.layers[0].feed_forward.up.bias


def test_the_final_norm_in_the_hidden_states() -> None:
    norm = nn.RMSNorm(HIDDEN)
    nn.init.normal_(norm.weight)
    stack, hidden, call = layers(2), torch.randn(1, 3, HIDDEN), Call(output_hidden_states=True)
    recorded = Encoder(stack, norm=norm)(hidden, call)
    assert torch.equal(recorded.hidden_states[-1], recorded.last_hidden_state)
    left_out = Encoder(stack, norm=norm, norm_in_hidden_states=False)(hidden, call)
    assert torch.equal(left_out.last_hidden_state, recorded.last_hidden_state)
    assert torch.equal(norm(left_out.hidden_states[-1]), left_out.last_hidden_state)
