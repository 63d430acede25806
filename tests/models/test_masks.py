"""Hidden tokens and masked heads change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from qdq.models.registry import FAMILIES
from tests.models.support import assert_same

if TYPE_CHECKING:
    from tests.models.support import SmallModels


@pytest.mark.parametrize("model_type", FAMILIES)
def test_padding_changes_nothing(model_type: str, small_models: SmallModels) -> None:
    model = small_models.build(model_type)
    ids = torch.randint(4, 83, (2, 6))
    padded = torch.cat([ids, torch.full((2, 4), 1)], dim=1)
    mask = torch.tensor([[1] * 6 + [0] * 4] * 2)
    with torch.no_grad():
        want = model(ids).last_hidden_state
        assert_same(model(padded, mask).last_hidden_state[:, :6], want)
        assert_same(model(padded, mask.bool()).last_hidden_state[:, :6], want)
        assert_same(model(padded, mask[:1]).last_hidden_state[:, :6], want)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_hides_padding_too(dtype: torch.dtype, small_models: SmallModels) -> None:
    model = small_models.build("bert", initializer_range=0.05).to(dtype)
    ids, mask = torch.randint(4, 83, (2, 6)), torch.tensor([[1] * 6, [1, 1, 0, 0, 0, 0]])
    with torch.no_grad():
        output = model(ids, mask, output_attentions=True)
    assert output.last_hidden_state.dtype == dtype
    assert bool(output.last_hidden_state.isfinite().all())
    assert not output.attentions[0][1, :, :, 2:].any()


def test_row_that_sees_nothing_is_uniform(small_models: SmallModels) -> None:
    model = small_models.build("bert")
    weights = model(torch.full((1, 4), 5), torch.zeros(1, 4), output_attentions=True).attentions[0]
    assert_same(weights, torch.full_like(weights, 0.25))


def test_albert_uses_the_first_rows_of_a_head_mask(small_models: SmallModels) -> None:
    model = small_models.build("albert", num_hidden_layers=4, num_hidden_groups=1)
    ids, mask = torch.full((1, 4), 5), torch.ones(4, 4)
    with torch.no_grad():
        want = model(ids).last_hidden_state
        mask[3] = 0
        assert torch.equal(model(ids, head_mask=mask).last_hidden_state, want)
        mask[0, 1] = 0
        assert not torch.allclose(model(ids, head_mask=mask).last_hidden_state, want)
