"""Learning rates over the steps of a training: factors, as pure functions."""

from __future__ import annotations

import math

__all__ = ["factor", "steps_of"]


def steps_of(share: float, total: int) -> int:
    """The number of steps that a share of ``total`` is, rounded."""
    return math.floor(share * total + 0.5)


def factor(step: int, total: int, *, schedule: str, warmup: int) -> float:
    """What the highest learning rate is multiplied with.

    1. In the first ``warmup`` steps it rises in a straight line, and reaches 1 behind them.
    2. ``linear``: it falls in a straight line to 0 behind the last step.
    3. ``cosine``: it falls like the first half of a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983).
    4. ``constant``: it stays 1.

    Args:
        step: steps done so far, 0 for the first.
        total: of the training.
        schedule: one of the above.
        warmup: steps.
    """
    if step < warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
