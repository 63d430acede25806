"""The loop: against steps written out in plain torch, what counts as progress, and what it refuses."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from qdq.errors import ConfigError, DataError, TrainingError
from qdq.quantization.quantizer import Mode, quantizers
from qdq.training.loop import finetune
from qdq.training.optimizer import parameter_groups
from qdq.training.settings import TrainingSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qdq.training.loss import Loss
    from tests.training.conftest import ToyTask


def plain_steps(model: nn.Module, batches: list[dict[str, torch.Tensor]], *, lr: float, epochs: int) -> None:
    """AdamW with a rate that falls in a straight line, and gradients of length 1 at most."""
    matrices = [p for p in model.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}], lr=lr
    )
    total = epochs * len(batches)
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=total)
    model.train()
    for _ in range(epochs):
        for batch in batches:
            model(**batch).loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()


def assert_close(one: nn.Module, other: nn.Module) -> None:
    """Equal but for what rounding does to Adam's steps of at most 1e-3.

    A bias of keys has no gradient, softmax takes it out: what rounding leaves of it decides the direction of its steps.
    """
    for (name, ours), theirs in zip(one.named_parameters(), other.parameters(), strict=True):
        if not name.endswith("key.bias"):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_steps_are_those_of_plain_torch(toy: ToyTask) -> None:
    ours, theirs = toy.model(), toy.model()
    torch.manual_seed(3)
    plain_steps(theirs, toy.batches(), lr=1e-3, epochs=2)
    torch.manual_seed(3)
    result = finetune(ours, toy.batches(), epochs=2, lr=1e-3, warmup=0)
    assert (result.steps, result.epochs) == (16, 2)
    assert_close(ours, theirs)


@pytest.mark.parametrize("make", ["float", "linear", pytest.param("qdqbert", marks=pytest.mark.slow)])
def test_it_learns(toy: ToyTask, make: str) -> None:
    model = toy.model() if make == "float" else toy.quantized_model(make)
    result = finetune(model, toy.batches(), evaluate=toy.accuracy, epochs=8, lr=1e-2)
    assert result.metric is not None
    assert result.metric > 0.85
    assert toy.accuracy(model.eval())["accuracy"] == result.metric, "the best weights are kept"
    assert result.history[-1]["step"] == 64
    modes = {q.mode for _, q in quantizers(model) if q.spec is not None}
    assert modes == (set() if make == "float" else {Mode.QUANTIZE})


def test_accumulated_batches_are_one_large_batch(toy: ToyTask) -> None:
    small, large = (toy.model(task="token-classification", **toy.NO_DROPOUT) for _ in range(2))
    batches = toy.batches(4)
    for number, batch in enumerate(batches):  # a different number of labels in each
        batch["labels"] = torch.where(torch.arange(8) < 2 + number, batch["input_ids"] % 2, -100)
    whole = [{name: torch.cat([b[name] for b in batches[i : i + 2]]) for name in batches[0]} for i in (0, 2)]
    finetune(small, batches, epochs=1, lr=1e-3, warmup=0, accumulation=2)
    finetune(large, whole, epochs=1, lr=1e-3, warmup=0)
    assert_close(small, large)


def test_gradient_checkpointing_changes_nothing(toy: ToyTask) -> None:
    for recipe in (None, "tensorrt"):
        models = [toy.quantized_model(recipe) if recipe else toy.model() for _ in range(2)]
        for model, on in zip(models, (True, False), strict=True):
            torch.manual_seed(3)
            finetune(model, toy.batches(2), epochs=1, lr=1e-3, gradient_checkpointing=on)
        assert_close(*models)


def test_a_seed_decides_everything(toy: ToyTask) -> None:
    loaders = [DataLoader(toy.dataset(4), batch_size=8, shuffle=True) for _ in range(3)]
    models = [toy.model() for _ in loaders]
    for model, loader, seed in zip(models, loaders, (5, 5, 6), strict=True):
        torch.manual_seed(seed)
        finetune(model, loader, epochs=2, lr=1e-3)
    first, again, other = ([p.detach() for p in model.parameters()] for model in models)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_a_loss_of_ones_own(toy: ToyTask) -> None:
    model = toy.model()
    seen = []

    def loss(current: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        seen.append(batch["labels"].shape[0])
        return torch.nn.functional.cross_entropy(current(batch["input_ids"]).logits, 1 - batch["labels"])

    result = finetune(model, toy.batches(), loss=loss, evaluate=toy.accuracy, better="lower", epochs=10, lr=1e-2)
    assert len(seen) == result.steps == 80
    assert result.metric is not None
    assert result.metric < 0.15, "it learned the opposite"


def test_mixed_precision_trains_and_leaves_no_trace(toy: ToyTask) -> None:
    model = toy.quantized_model()
    forward = type(model).forward
    result = finetune(model, toy.batches(), evaluate=toy.accuracy, epochs=6, lr=1e-2, mixed_precision="bf16")
    assert result.metric is not None
    assert result.metric > 0.75
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert "forward" not in model.__dict__ or model.forward.__func__ is forward


def test_it_stops_for_want_of_progress(toy: ToyTask) -> None:
    figures = iter([0.5, 0.7, 0.6, 0.65, 0.9])
    told: list[tuple[int, int, str]] = []
    best: list[int] = []
    result = finetune(
        toy.model(),
        toy.batches(),
        evaluate=lambda _: {"f1": next(figures)},
        on_best=lambda _, position: best.append(position.step),
        epochs=5,
        patience=2,
        progress=lambda *how: told.append(how),
    )
    assert result.stopped_early
    assert (result.steps, result.best_step, result.metric) == (32, 16, 0.7)
    assert best == [8, 16]
    assert told[-1] == (32, 40, "f1 0.6500")
    assert any("loss" in how and "f1" in how for _, _, how in told)


def test_the_log_is_a_table(toy: ToyTask) -> None:
    result = finetune(toy.model(), toy.batches(), evaluate=toy.accuracy, epochs=2, lr=1e-3, warmup=0)
    head, *rows = result.log.splitlines()
    assert head == "step,epoch,loss,lr,accuracy"
    assert [row.split(",")[0] for row in rows] == ["8", "10", "16"]
    assert float(rows[1].split(",")[3]) == pytest.approx(1e-3 * 6 / 16)
    assert rows[1].endswith(",")
    assert float(rows[0].split(",")[4]) == result.history[0]["accuracy"]


def test_evaluation_does_not_change_the_training(toy: ToyTask) -> None:
    def noisy(model: nn.Module) -> float:
        torch.rand(3)
        return toy.accuracy(model)["accuracy"]

    models = [toy.quantized_model(), toy.quantized_model()]
    for model, evaluate in zip(models, (noisy, None), strict=True):
        torch.manual_seed(3)
        finetune(model, toy.batches(), evaluate=evaluate, eval_steps=3, epochs=1, lr=1e-3, keep_best=False)
    assert all(torch.equal(a, b) for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True))


# --- parameters


def test_what_decays_and_what_does_not(toy: ToyTask) -> None:
    model = toy.model()
    model.embeddings.requires_grad_(requires_grad=False)
    decaying, plain = parameter_groups(model, TrainingSettings())
    assert decaying.weight_decay == 0.01
    assert plain.weight_decay == 0
    assert all(model.get_parameter(name).dim() > 1 for name in decaying.names)
    assert all(name.endswith((".bias", "norm.weight")) for name in plain.names)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {*decaying.names, *plain.names} == trained


def test_shared_weights_are_trained_once(toy: ToyTask) -> None:
    model = toy.model("albert", embedding_size=8)
    found = [name for group in parameter_groups(model, TrainingSettings()) for name in group.names]
    assert len(found) == len(set(found)) == len(list(model.parameters()))


# --- bad input


def test_a_loss_that_is_no_number_names_step_and_last_good(toy: ToyTask) -> None:
    model, calls = toy.model(), []

    def loss(current: nn.Module, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        calls.append(1)
        return current(**batch).loss * (float("nan") if len(calls) > 10 else 1.0)

    with pytest.raises(TrainingError, match=r"step 11 \(epoch 2\): the loss is not a number") as caught:
        finetune(model, toy.batches(), loss=loss, evaluate=toy.accuracy, epochs=3)
    assert "the last good model is that of step 8" in str(caught.value)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_nothing_to_train_on(toy: ToyTask) -> None:
    with pytest.raises(DataError, match="no batch"):
        finetune(toy.model(), [])
    with pytest.raises(DataError, match="no batch"):
        finetune(toy.model(), lambda _: [], max_steps=3)
    with pytest.raises(ConfigError, match="read once"):
        finetune(toy.model(), iter(toy.batches()))
    with pytest.raises(ConfigError, match="max_steps"):
        finetune(toy.model(), lambda _: toy.batches())
    with pytest.raises(ConfigError, match="nothing to train"):
        finetune(toy.model().requires_grad_(requires_grad=False), toy.batches())


def test_labels_out_of_range(toy: ToyTask) -> None:
    batches = toy.batches(1)
    batches[0]["labels"] = batches[0]["labels"] + 1
    with pytest.raises(DataError, match=r"labels must be between 0 and 1 .*found 2"):
        finetune(toy.model(), batches)


@pytest.mark.parametrize("loss", [lambda m, b: 1.0, lambda m, b: m(**b).logits, lambda m, b: m(**b).loss.detach()])
def test_losses_that_are_none(toy: ToyTask, loss: Loss) -> None:
    with pytest.raises(ConfigError, match="the loss"):
        finetune(toy.model(), toy.batches(1), loss=loss)


def test_patience_needs_evaluations() -> None:
    with pytest.raises(ConfigError, match="patience counts evaluations"):
        finetune(torch.nn.Linear(2, 2), [{}], patience=1)
