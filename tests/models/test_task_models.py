"""Labels of the tasks, and what they decide."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from qdq.models.task_models import SequenceClassification

if TYPE_CHECKING:
    from tests.models.support import SmallModels


def test_problem_type_is_decided_once(small_models: SmallModels) -> None:
    model = small_models.build("bert", "sequence-classification")
    assert isinstance(model, SequenceClassification)
    model(torch.full((2, 3), 5), labels=torch.tensor([0, 1]))
    assert model.config.problem_type == "single_label_classification"


def test_ignored_labels_give_nan(small_models: SmallModels) -> None:
    model = small_models.build("bert", "token-classification")
    assert model(torch.full((1, 3), 5), labels=torch.full((1, 3), -100)).loss.isnan()


def test_pre_training_needs_both_labels(small_models: SmallModels) -> None:
    ids = torch.full((2, 3), 5)
    model = small_models.build("bert", "pre-training")
    assert model(ids, labels=ids).loss is None
    assert small_models.build("albert", "pre-training")(ids, sentence_order_label=torch.tensor([0, 1])).loss is None


def test_old_name_of_the_next_sentence_label(small_models: SmallModels) -> None:
    model, ids, labels = small_models.build("bert", "next-sentence"), torch.full((2, 3), 5), torch.tensor([0, 1])
    with pytest.warns(FutureWarning, match="use labels"):
        old = model(ids, next_sentence_label=labels).loss
    assert torch.equal(old, model(ids, labels=labels).loss)
