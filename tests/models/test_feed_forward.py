"""The feed-forward block with each of its options, against the formula written out in torch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import gelu, linear

from qdq.models.dataflow import Origin
from qdq.models.feed_forward import FeedForward

HIDDEN, INTERMEDIATE = 6, 10


def formula(block: FeedForward, hidden: Tensor) -> Tensor:
    return linear(gelu(linear(hidden, block.up.weight, block.up.bias)), block.down.weight, block.down.bias)


@pytest.fixture
def hidden() -> Tensor:
    return torch.randn(2, 4, HIDDEN)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_without_norm(bias: bool, hidden: Tensor) -> None:
    block = FeedForward(HIDDEN, INTERMEDIATE, activation=nn.GELU(), norm=None, bias=bias)
    assert (block.up.bias is not None) is (block.down.bias is not None) is bias
    torch.testing.assert_close(block(hidden), formula(block, hidden) + hidden)
    assert block.origin() == Origin()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("chunk_size", [0, 2], ids=["whole", "chunks"])
def test_norm_before_and_after(bias: bool, chunk_size: int, hidden: Tensor) -> None:
    norm = nn.RMSNorm(HIDDEN)
    nn.init.normal_(norm.weight)
    after, before = (
        FeedForward(
            HIDDEN,
            INTERMEDIATE,
            activation=nn.GELU(),
            norm=norm,
            norm_first=norm_first,
            bias=bias,
            chunk_size=chunk_size,
        )
        for norm_first in (False, True)
    )
    torch.testing.assert_close(after(hidden), norm(formula(after, hidden) + hidden))
    torch.testing.assert_close(before(hidden), formula(before, norm(hidden)) + hidden)


def test_what_the_linear_layers_read() -> None:
    source = nn.Linear(3, HIDDEN)
    block = FeedForward(HIDDEN, INTERMEDIATE, activation=nn.GELU(), norm=None)
    up, down = block.linear_reads(Origin(linear=source))
    assert (up.linears, up.source, up.add, up.norm) == ((block.up,), source, block.add, None)
    assert (down.linears, down.activation) == ((block.down,), block.activation)
    up, _ = block.linear_reads(Origin())
    assert (up.norm, up.source, up.add) == (None, None, None)
