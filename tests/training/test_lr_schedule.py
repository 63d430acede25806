"""Learning rates, against torch's own schedulers."""

from __future__ import annotations

import math

import pytest
import torch

from qdq.training.lr_schedule import lr_multiplier, steps_of_share


def of_torch(*schedulers: torch.optim.lr_scheduler.LRScheduler, steps: int) -> list[float]:
    (optimizer,) = {id(s.optimizer): s.optimizer for s in schedulers}.values()
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        for scheduler in schedulers:
            scheduler.step()
    return rates


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)


def test_linear_falls_as_in_torch() -> None:
    scheduler = torch.optim.lr_scheduler.LinearLR(optimizer(), 1.0, 0.0, total_iters=20)
    ours = [lr_multiplier(step, 20, schedule="linear", warmup=0) for step in range(20)]
    assert ours == pytest.approx(of_torch(scheduler, steps=20), abs=1e-12)


def test_cosine_falls_as_in_torch() -> None:
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer(), T_max=20)
    ours = [lr_multiplier(step, 20, schedule="cosine", warmup=0) for step in range(20)]
    assert ours == pytest.approx(of_torch(scheduler, steps=20), abs=1e-12)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_warmup_rises_from_zero_to_one(schedule: str) -> None:
    rates = [lr_multiplier(step, 30, schedule=schedule, warmup=10) for step in range(31)]
    assert rates[:11] == pytest.approx([step / 10 for step in range(11)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[30] == (1.0 if schedule == "constant" else pytest.approx(0.0, abs=1e-12))


@pytest.mark.parametrize(
    ("share", "total", "steps"), [(0, 10, 0), (1, 10, 10), (0.1, 10, 1), (0.25, 10, 3), (0.5, 3, 2)]
)
def test_shares_are_rounded_to_steps(share: float, total: int, steps: int) -> None:
    assert steps_of_share(share, total) == steps
    assert abs(steps - share * total) <= 0.5
    assert not math.isnan(share)
