"""The attention block with each of its options, against the formula written out in torch."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from qdq.models.attention import Attention
from qdq.models.dataflow import Origin

HIDDEN, HEADS, HEAD_SIZE = 12, 3, 4


def formula(block: Attention, hidden: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return the output projection of softmax(q k^T / sqrt(d) + mask) v, one head at a time."""
    contexts = []
    for head in range(len(block.heads)):
        rows = slice(head * HEAD_SIZE, (head + 1) * HEAD_SIZE)
        query, key, value = (
            linear(hidden, layer.weight[rows], None if layer.bias is None else layer.bias[rows])
            for layer in (block.query, block.key, block.value)
        )
        scores = query @ key.transpose(1, 2) / math.sqrt(HEAD_SIZE)
        if mask is not None:
            scores = scores + mask
        contexts.append(torch.softmax(scores, dim=-1) @ value)
    return linear(torch.cat(contexts, dim=-1), block.output.weight, block.output.bias)


@pytest.fixture
def hidden() -> Tensor:
    return torch.randn(2, 5, HIDDEN)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa"])
def test_without_norm(bias: bool, implementation: str, hidden: Tensor) -> None:
    block = Attention(HIDDEN, HEADS, norm=None, bias=bias)
    block.implementation = implementation
    assert (block.query.bias is not None) is (block.output.bias is not None) is bias
    mask = torch.zeros(2, 1, 5).masked_fill(torch.tensor([[[False] * 5], [[False] * 3 + [True] * 2]]), -1e9)
    got, weights, cache = block(hidden, mask[:, None])
    torch.testing.assert_close(got, formula(block, hidden, mask) + hidden)
    assert weights is None
    assert [tensor.shape for tensor in cache] == [(2, HEADS, 5, HEAD_SIZE)] * 2


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_norm_before_and_after(bias: bool, hidden: Tensor) -> None:
    norm = nn.RMSNorm(HIDDEN)
    nn.init.normal_(norm.weight)
    after = Attention(HIDDEN, HEADS, norm=norm, bias=bias)
    torch.testing.assert_close(after(hidden)[0], norm(formula(after, hidden) + hidden))
    before = Attention(HIDDEN, HEADS, norm=norm, norm_first=True, bias=bias)
    torch.testing.assert_close(before(hidden)[0], formula(before, norm(hidden)) + hidden)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_pruned_heads_equal_masked_heads(bias: bool, hidden: Tensor) -> None:
    block = Attention(HIDDEN, HEADS, norm=None, bias=bias)
    head_mask = torch.tensor([1.0, 0.0, 1.0])[:, None, None]
    expected = block(hidden, head_mask=head_mask)[0]
    output_bias = block.output.bias
    block.prune([1])
    assert block.heads == [0, 2]
    assert block.query.weight.shape == (2 * HEAD_SIZE, HIDDEN)
    assert block.output.weight.shape == (HIDDEN, 2 * HEAD_SIZE)
    assert block.output.bias is output_bias
    if not bias:
        assert all(layer.bias is None for layer in (block.query, block.key, block.value, block.output))
    torch.testing.assert_close(block(hidden)[0], expected)
    torch.testing.assert_close(block(hidden)[0], formula(block, hidden) + hidden)
    block.prune([1])
    assert block.heads == [0, 2]


def test_what_the_linear_layers_read() -> None:
    norm, earlier = nn.RMSNorm(HIDDEN), nn.LayerNorm(HIDDEN)
    origin = Origin(norm=earlier)

    post_norm = Attention(HIDDEN, HEADS, norm=norm)
    projections, output = post_norm.linear_reads(origin)
    assert projections.linears == (post_norm.query, post_norm.key, post_norm.value)
    assert (projections.norm, projections.add, projections.branch) == (earlier, post_norm.add, post_norm.output)
    assert (output.linears, output.value, output.context) == ((post_norm.output,), post_norm.value, post_norm.context)
    assert post_norm.origin() == Origin(norm=norm)

    pre_norm = Attention(HIDDEN, HEADS, norm=norm, norm_first=True)
    projections, _ = pre_norm.linear_reads(origin)
    assert (projections.norm, projections.add) == (norm, None)
    assert pre_norm.origin() == Origin()

    # The first block of a pre-norm family may leave its norm to the embeddings.
    no_norm = Attention(HIDDEN, HEADS, norm=None, norm_first=True)
    projections, _ = no_norm.linear_reads(origin)
    assert (projections.norm, projections.add) == (earlier, no_norm.add)

    crossing = Attention(HIDDEN, HEADS, norm=norm, cross=True)
    memory, query, _ = crossing.linear_reads(origin)
    assert (memory.linears, memory.norm, memory.source) == ((crossing.key, crossing.value), None, None)
    assert (query.linears, query.norm) == ((crossing.query,), earlier)
