"""Losses, against other people's numbers and against sums written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from qdq.errors import DataError
from qdq.training.objective import cosent, model_loss, sts_loss, weight_of


def test_cosent_is_that_of_sentence_transformers() -> None:
    losses = pytest.importorskip("sentence_transformers.sentence_transformer.losses")
    theirs = losses.CoSENTLoss(model=torch.nn.Identity())
    one, other = torch.nn.functional.normalize(torch.randn(2, 12, 6), dim=-1)
    scores = torch.randint(0, 6, (12,)).float()
    want = theirs.compute_loss_from_embeddings([one, other], scores)
    torch.testing.assert_close(cosent((one * other).sum(-1), scores), want)


def test_cosent_is_its_sum_written_out() -> None:
    similarity, score = torch.tensor([0.1, 0.7, 0.3]), torch.tensor([5.0, 1.0, 3.0])
    total = 1.0
    for i in range(3):
        for j in range(3):
            if score[i] < score[j]:
                total += math.exp(20 * float(similarity[i] - similarity[j]))
    assert float(cosent(similarity, score)) == pytest.approx(math.log(total), rel=1e-5)
    assert float(cosent(similarity, torch.ones(3))) == 0


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
def test_pairs_are_pooled_as_in_evaluation(kit: Any, pooling: str) -> None:
    from qdq.tasks.pooling import pool

    model = kit.model(task="feature-extraction").eval()
    batch = kit.batches(1)[0]
    pairs = {name: batch[name].view(4, 2, 8) for name in ("input_ids", "attention_mask")}
    scores = torch.tensor([1.0, 4.0, 2.0, 0.0])
    with torch.no_grad():
        hidden = model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
        vectors = torch.from_numpy(pool(hidden.numpy(), batch["attention_mask"].numpy(), pooling))
        cosines = torch.nn.functional.cosine_similarity(vectors[::2], vectors[1::2])
        found = sts_loss(model, {**pairs, "labels": scores}, pooling=pooling)
    torch.testing.assert_close(found, cosent(cosines, scores), rtol=1e-4, atol=1e-5)


def test_labels_that_are_ignored_do_not_weigh() -> None:
    assert weight_of({"labels": torch.tensor([[1, -100, 2], [-100, -100, 0]])}) == 3
    assert weight_of({"input_ids": torch.zeros(4, 7), "labels": torch.zeros(4, dtype=torch.long)}) == 4
    assert weight_of({"start_positions": torch.zeros(5)}) == 5


def test_batches_without_labels_are_refused(kit: Any) -> None:
    batch = {name: tensor for name, tensor in kit.batches(1)[0].items() if name != "labels"}
    with pytest.raises(DataError, match="batches need labels"):
        model_loss(kit.model(), batch)
