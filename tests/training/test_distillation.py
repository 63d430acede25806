"""Learning from a teacher: each part of the loss, and what cannot teach."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from qdq.training.distillation import (
    DistillationLoss,
    attention_loss,
    hidden_loss,
    logits_loss,
    teacher_problems,
)
from qdq.training.loop import finetune
from qdq.training.settings import Distillation

if TYPE_CHECKING:
    from tests.training.conftest import ToyTask


def test_logits_are_kl_divergence_as_torch_has_it() -> None:
    student, teacher = torch.randn(6, 3), torch.randn(6, 3)
    want = torch.nn.functional.kl_div(
        torch.log_softmax(student / 2, -1), torch.softmax(teacher / 2, -1), reduction="batchmean"
    )
    torch.testing.assert_close(logits_loss(student, teacher, 2.0), 4 * want)
    assert float(logits_loss(student, student, 3.0)) == pytest.approx(0, abs=1e-6)


def test_scores_are_compared_by_their_squares() -> None:
    student, teacher = torch.randn(6, 1), torch.randn(6, 1)
    want = torch.nn.functional.mse_loss(student, teacher)
    torch.testing.assert_close(logits_loss(student, teacher, 2.0), want)


def test_labels_by_themselves_are_divergences_of_bernoulli_as_torch_has_them() -> None:
    student, teacher = torch.randn(6, 3), torch.randn(6, 3)
    two = [torch.distributions.Bernoulli(logits=logits / 2) for logits in (teacher, student)]
    want = 4 * torch.distributions.kl_divergence(*two).mean()
    torch.testing.assert_close(logits_loss(student, teacher, 2.0, independent=True), want)


def test_a_teacher_of_several_labels_teaches_them_one_by_one(toy: ToyTask) -> None:
    several = {"problem_type": "multi_label_classification", "num_labels": 3}
    teacher, student = toy.model(**several), toy.model(**several, initializer_range=0.1).eval()
    batch = {name: t for name, t in toy.batches(1)[0].items() if name != "labels"}
    loss = DistillationLoss(teacher, Distillation(task=0))(student, batch)
    with torch.no_grad():
        want = logits_loss(student(**batch).logits, teacher.eval()(**batch).logits, 2.0, independent=True)
    torch.testing.assert_close(loss.detach(), want)
    found = teacher_problems(
        student.config, replace(teacher.config, problem_type="single_label_classification"), Distillation()
    )
    assert found == ["its head is made for single_label_classification, the model's for multi_label_classification"]


def test_only_what_counts_is_learned() -> None:
    student, teacher = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    counts = torch.tensor([[1, 1, 0], [1, 0, 0]]) != 0
    want = logits_loss(student[counts], teacher[counts], 1.0)
    torch.testing.assert_close(logits_loss(student, teacher, 1.0, counts), want)


def test_hidden_states_skip_padding_and_meet_even_layers() -> None:
    teacher = tuple(torch.randn(2, 3, 4) for _ in range(5))
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]]) != 0
    spoiled = tuple(state.masked_fill(~mask[..., None], 9.0) for state in (teacher[0], teacher[2], teacher[4]))
    assert float(hidden_loss(spoiled, teacher, mask)) == 0
    moved = tuple(state + 0.5 for state in spoiled)
    assert float(hidden_loss(moved, teacher, mask)) == pytest.approx(0.25, rel=1e-5)


def test_attention_takes_the_last_layer_of_each_group() -> None:
    teacher = tuple(torch.rand(1, 2, 3, 3) for _ in range(4))
    mask = torch.tensor([[1, 1, 0]]) != 0
    assert float(attention_loss((teacher[1], teacher[3]), teacher, mask)) == 0
    other = torch.zeros_like(teacher[1])
    want = teacher[1][:, :, :2].square().sum(-1).mean() / 2
    torch.testing.assert_close(attention_loss((other, teacher[3]), teacher, mask), want)


def test_a_model_is_its_own_perfect_teacher(toy: ToyTask) -> None:
    model = toy.model(**toy.NO_DROPOUT)
    wanted = Distillation(task=0, logits=1, hidden=1, attention=1)
    loss = DistillationLoss(copy.deepcopy(model), wanted)
    assert float(loss(model, toy.batches(1)[0]).detach()) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("task", ["token-classification", "question-answering"])
def test_heads_of_tokens_and_spans(toy: ToyTask, task: str) -> None:
    model, teacher = toy.model(task=task), toy.model(task=task, initializer_range=0.3)
    batch = {name: t for name, t in toy.batches(1)[0].items() if name != "labels"}
    if task == "token-classification":
        batch["labels"] = torch.where(batch["attention_mask"] != 0, batch["input_ids"] % 2, -100)
    else:
        batch |= {"start_positions": torch.ones(8, dtype=torch.long), "end_positions": torch.full((8,), 3)}
    loss = DistillationLoss(teacher, Distillation(task=0.5, logits=1, hidden=0.1, attention=0.1))(model, batch)
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(p.grad).all() for p in model.parameters() if p.grad is not None)
    assert all(p.grad is None for p in teacher.parameters())


def test_a_student_comes_closer_to_its_teacher(toy: ToyTask) -> None:
    teacher = toy.model()
    finetune(teacher, toy.batches(), epochs=8, lr=1e-2)
    student = toy.model(initializer_range=0.1)
    loss = DistillationLoss(copy.deepcopy(teacher), Distillation(task=0))
    batch = toy.batches(1)[0]

    def distance() -> float:
        with torch.no_grad():
            return float(loss(student.eval(), batch))

    before = distance()
    finetune(student, toy.batches(), loss=loss, epochs=8, lr=1e-2)
    assert distance() < before / 2


@pytest.mark.parametrize(
    ("changes", "wanted", "problem"),
    [
        ({"hidden_size": 32}, {"hidden": 1.0}, "hidden states are 32 wide, the model's 16"),
        ({"num_attention_heads": 4}, {"attention": 1.0}, "4 attention heads, the model 2"),
        ({"num_hidden_layers": 3}, {"hidden": 1.0}, "3 layers, which is no multiple of the model's 2"),
        ({"vocab_size": 41}, {}, "vocabulary of 41, the model one of 40"),
        ({"num_labels": 3}, {}, "head has 3 labels, the model's 2"),
    ],
    ids=["width", "heads", "depth", "vocabulary", "labels"],
)
def test_what_cannot_teach_says_why(
    toy: ToyTask, changes: dict[str, Any], wanted: dict[str, float], problem: str
) -> None:
    student = toy.model().config
    found = teacher_problems(student, replace(student, **changes), Distillation(**wanted))
    assert len(found) == 1
    assert problem in found[0]
    if not set(changes) & {"vocab_size", "num_labels"}:
        assert teacher_problems(student, replace(student, **changes), Distillation()) == []
