"""Losses of models that embed, against other people's numbers and against sums written out."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn.functional import cosine_embedding_loss, cosine_similarity, normalize

from qdq.training.distillation import DistillationLoss, teacher_problems
from qdq.training.embedding_loss import cosent_loss, embedding_loss, sts_loss
from qdq.training.loop import finetune
from qdq.training.settings import Distillation

if TYPE_CHECKING:
    from tests.training.conftest import ToyTask


@pytest.fixture
def pairs(toy: ToyTask) -> dict[str, torch.Tensor]:
    """Four pairs of texts with a score."""
    batch = toy.batches(1)[0]
    texts = {name: batch[name].view(4, 2, 8) for name in ("input_ids", "attention_mask")}
    return {**texts, "labels": torch.tensor([1.0, 4.0, 2.0, 0.0])}


def test_cosent_is_that_of_sentence_transformers() -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    theirs = losses.CoSENTLoss(model=torch.nn.Identity())
    one, other = torch.nn.functional.normalize(torch.randn(2, 12, 6), dim=-1)
    scores = torch.randint(0, 6, (12,)).float()
    want = theirs.compute_loss_from_embeddings([one, other], scores)
    torch.testing.assert_close(cosent_loss((one * other).sum(-1), scores), want)


def test_cosent_is_its_sum_written_out() -> None:
    similarity, score = torch.tensor([0.1, 0.7, 0.3]), torch.tensor([5.0, 1.0, 3.0])
    total = 1.0
    for i in range(3):
        for j in range(3):
            if score[i] < score[j]:
                total += math.exp(20 * float(similarity[i] - similarity[j]))
    assert float(cosent_loss(similarity, score)) == pytest.approx(math.log(total), rel=1e-5)
    assert float(cosent_loss(similarity, torch.ones(3))) == 0


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_pairs_are_pooled_as_in_evaluation(toy: ToyTask, pooling: str) -> None:
    from qdq.tasks.pooling import pool

    model = toy.model(task="feature-extraction").eval()
    batch = toy.batches(1)[0]
    pairs = {name: batch[name].view(4, 2, 8) for name in ("input_ids", "attention_mask")}
    scores = torch.tensor([1.0, 4.0, 2.0, 0.0])
    with torch.no_grad():
        hidden = model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        vectors = torch.from_numpy(pool(hidden.numpy(), batch["attention_mask"].numpy(), pooling))
        cosines = torch.nn.functional.cosine_similarity(vectors[::2], vectors[1::2])
        found = sts_loss(model, {**pairs, "labels": scores}, pooling=pooling)
    torch.testing.assert_close(found, cosent_loss(cosines, scores), rtol=1e-4, atol=1e-5)


def test_the_distance_of_embeddings_is_that_of_torch() -> None:
    one, other = normalize(torch.randn(2, 12, 6), dim=-1)
    want = cosine_embedding_loss(one, other, torch.ones(12))
    torch.testing.assert_close(embedding_loss(one, other), 20 * want)


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_a_model_is_its_own_perfect_teacher(toy: ToyTask, pairs: dict[str, torch.Tensor], pooling: str) -> None:
    model = toy.model(task="feature-extraction").eval()
    alone = DistillationLoss(copy.deepcopy(model), Distillation(task=0, hidden=1, attention=1), pooling=pooling)
    assert float(alone(model, pairs).detach()) == pytest.approx(0, abs=1e-5)
    both = DistillationLoss(copy.deepcopy(model), Distillation(task=3), pooling=pooling)
    torch.testing.assert_close(both(model, pairs), 3 * sts_loss(model, pairs, pooling=pooling), rtol=1e-5, atol=1e-5)


def test_embeddings_come_closer_to_those_of_the_teacher(toy: ToyTask, pairs: dict[str, torch.Tensor]) -> None:
    teacher = toy.model(task="feature-extraction", initializer_range=0.3)
    student = toy.model(task="feature-extraction", initializer_range=0.1)
    loss = DistillationLoss(teacher, Distillation(task=0), pooling="mean")
    texts = {name: pairs[name].flatten(0, 1) for name in ("input_ids", "attention_mask")}

    def distance() -> float:
        with torch.no_grad():
            ours, theirs = (kind.eval()(**texts).last_hidden_state for kind in (student, teacher))
            shares = texts["attention_mask"][..., None]
            vectors = [(hidden * shares).sum(1) for hidden in (ours, theirs)]
            return float((1 - cosine_similarity(*vectors)).mean())

    before = distance()
    finetune(student, [pairs] * 4, loss=loss, epochs=8, lr=1e-2)
    assert distance() < before / 2


def test_embeddings_of_another_width_cannot_be_learnt(toy: ToyTask) -> None:
    config = toy.model(task="feature-extraction").config
    other = replace(config, hidden_size=32, num_labels=7)
    (found,) = teacher_problems(config, other, Distillation(), embeds=True)
    assert found == "its embeddings are 32 wide, the model's 16"
    assert teacher_problems(config, replace(config, num_labels=7), Distillation(), embeds=True) == []
