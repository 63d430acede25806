"""The loss of a model itself, and what a batch weighs."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from qdq.errors import DataError
from qdq.training.loss import count_labels, model_loss

if TYPE_CHECKING:
    from tests.training.conftest import ToyTask


def test_labels_that_are_ignored_do_not_weigh() -> None:
    assert count_labels({"labels": torch.tensor([[1, -100, 2], [-100, -100, 0]])}) == 3
    assert count_labels({"input_ids": torch.zeros(4, 7), "labels": torch.zeros(4, dtype=torch.long)}) == 4
    assert count_labels({"start_positions": torch.zeros(5)}) == 5


def test_batches_without_labels_are_refused(toy: ToyTask) -> None:
    batch = {name: tensor for name, tensor in toy.batches(1)[0].items() if name != "labels"}
    with pytest.raises(DataError, match="batches need labels"):
        model_loss(toy.model(), batch)
