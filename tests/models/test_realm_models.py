"""The models of REALM: scores, marginal losses and spans."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from tests.models.support import SmallModels


def test_marginal_loss_of_nothing_is_zero(small_models: SmallModels) -> None:
    model = small_models.build("realm", "masked-lm")
    ids = torch.full((1, 2, 4), 5)
    scores, labels = torch.zeros(1, 2), torch.full((1, 4), 7)
    assert model(ids, relevance_score=scores, labels=labels, mlm_mask=torch.zeros(1, 4)).loss == 0
    assert model(ids, relevance_score=scores, labels=torch.full((1, 4), -100)).loss == 0
    assert model(ids, relevance_score=scores, labels=labels).loss > 0
    assert model(ids).loss is None


def test_scorer_with_an_embedder_for_each_side(small_models: SmallModels) -> None:
    scorer, embedder = small_models.build("realm", "scoring"), small_models.build("realm", "retrieval")
    ids, embeds = torch.full((2, 6), 5), torch.randn(4, 5, 32)
    assert scorer.query_embedder is scorer.embedder
    before = scorer(ids, candidate_inputs_embeds=embeds)
    scorer.query_embedder = embedder
    after = scorer(ids, candidate_inputs_embeds=embeds)
    assert after.relevance_score.shape == (2, 2)
    assert torch.equal(after.query_score, embedder(ids).projected_score)
    assert torch.equal(after.candidate_score, before.candidate_score)
    assert len(scorer(ids, candidate_inputs_embeds=embeds, return_dict=False)) == 3


def test_reader_without_labels_gives_a_span_and_no_loss(small_models: SmallModels) -> None:
    model = small_models.build("realm", "question-answering")
    evidence = torch.tensor([[0, 0, 1, 1, 1, 0]] * 3)
    result = model(torch.full((2, 6), 5), relevance_score=torch.tensor([0.0, 9.0, 1.0]), block_mask=evidence)
    assert list(result) == ["block_idx", "candidate", "start_pos", "end_pos"]
    assert result.block_idx == 1
    assert 2 <= int(result.start_pos) <= int(result.end_pos) <= 4


def test_reader_counts_spans_by_width_first(small_models: SmallModels) -> None:
    starts, ends = small_models.build("realm", "question-answering").head.spans(4, torch.device("cpu"))
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == [
        (0, 0), (1, 1), (2, 2), (3, 3), (0, 1), (1, 2), (2, 3), (0, 2), (1, 3),
    ]  # fmt: skip
