"""The loss of a model itself, and what a batch weighs."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qdq.errors import DataError
from qdq.training.objective import model_loss, weight_of


def test_labels_that_are_ignored_do_not_weigh() -> None:
    assert weight_of({"labels": torch.tensor([[1, -100, 2], [-100, -100, 0]])}) == 3
    assert weight_of({"input_ids": torch.zeros(4, 7), "labels": torch.zeros(4, dtype=torch.long)}) == 4
    assert weight_of({"start_positions": torch.zeros(5)}) == 5


def test_batches_without_labels_are_refused(kit: Any) -> None:
    batch = {name: tensor for name, tensor in kit.batches(1)[0].items() if name != "labels"}
    with pytest.raises(DataError, match="batches need labels"):
        model_loss(kit.model(), batch)
