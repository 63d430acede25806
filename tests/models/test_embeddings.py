"""Embeddings with and without each of their optional steps, against sums of table rows."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qdq.models.embeddings import Embeddings
from qdq.models.inputs import InputError

IDS = torch.tensor([[5, 6, 7], [8, 1, 1]])
TYPES = torch.tensor([[0, 1, 1], [0, 0, 1]])


def test_the_word_table_alone() -> None:
    block = Embeddings(10, 4)
    assert [name for name, _ in block.named_parameters()] == ["word.weight"]
    assert torch.equal(block(IDS), block.word.weight[IDS])
    assert torch.equal(block(IDS, past_length=3), block.word.weight[IDS])
    # without a table of positions, there is no longest sequence
    assert block(torch.full((1, 1000), 5)).shape == (1, 1000, 4)
    given = torch.randn(2, 3, 4)
    assert torch.equal(block(inputs_embeds=given), given)


def test_without_positions() -> None:
    block = Embeddings(10, 4, token_types=2)
    assert torch.equal(block(IDS, TYPES), block.word.weight[IDS] + block.token_type.weight[TYPES])
    assert torch.equal(block(IDS), block.word.weight[IDS] + block.token_type.weight[0])


def test_without_token_types() -> None:
    block = Embeddings(10, 4, positions=6)
    assert torch.equal(block(IDS), block.word.weight[IDS] + block.position.weight[:3])
    assert torch.equal(block(IDS, past_length=2), block.word.weight[IDS] + block.position.weight[2:5])
    with pytest.raises(InputError, match="no token types: leave token_type_ids out"):
        block(IDS, TYPES)
    with pytest.raises(InputError, match="3 tokens and 4 cached is too long: the model takes at most 6"):
        block(IDS, past_length=4)


def test_a_table_of_positions_that_is_not_added() -> None:
    block = Embeddings(10, 4, positions=6, adds_positions=False)
    assert block.position.weight.shape == (6, 4)
    assert torch.equal(block(torch.full((1, 9), 5)), block.word.weight[torch.full((1, 9), 5)])


def test_positions_that_count_from_padding() -> None:
    block = Embeddings(10, 4, positions=8, first_position=2)
    assert torch.equal(block(IDS), block.word.weight[IDS] + block.position.weight[torch.tensor([[2, 3, 4], [2, 1, 1]])])
    given = torch.randn(2, 3, 4)
    # ids that are not known cannot be padding
    assert torch.equal(block(inputs_embeds=given), given + block.position.weight[2:5])
    assert torch.equal(block(inputs_embeds=given, past_length=2), given + block.position.weight[2:5])


def test_norm_and_projection() -> None:
    norm = nn.RMSNorm(4)
    block = Embeddings(10, 4, norm=norm, projection=6)
    expected = nn.functional.linear(norm(block.word.weight[IDS]), block.projection.weight, block.projection.bias)
    torch.testing.assert_close(block(IDS), expected)
    assert block.origin().linear is block.projection
    assert block.origin().norm is None
    assert Embeddings(10, 4, norm=norm).origin().norm is norm
