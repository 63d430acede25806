"""Outputs can be read like a tuple and like a mapping."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

if TYPE_CHECKING:
    from tests.models.support import SmallModels


def test_output_is_a_tuple_and_a_mapping(small_models: SmallModels) -> None:
    model, ids = small_models.build("bert", "masked-lm"), torch.full((1, 3), 5)
    output = model(ids, output_hidden_states=True)
    assert list(output) == ["logits", "hidden_states"]
    assert len(output) == 2
    assert output[0] is output["logits"] is output.logits is output.values()[0]
    assert output[1:] == (output.hidden_states,)
    with pytest.raises(KeyError):
        output["loss"]


def test_tuple_form(small_models: SmallModels) -> None:
    ids = torch.full((1, 3), 5)
    model = small_models.build("bert")
    assert len(model(ids, return_dict=False)) == 2
    model.pooler = None
    hidden, pooled, states = model(ids, return_dict=False, output_hidden_states=True)
    assert pooled is None
    assert (hidden.shape, len(states)) == ((1, 3, 32), 4)
    assert isinstance(small_models.build("bert", return_dict=False)(ids), tuple)
    assert isinstance(small_models.build("bert", torchscript=True)(ids), tuple)
    configured = small_models.build("bert", output_attentions=True, output_hidden_states=True)(ids)
    assert (len(configured.attentions), len(configured.hidden_states)) == (3, 4)
