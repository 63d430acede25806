"""Learning rates over the steps of a training, as pure functions."""

from __future__ import annotations

import math

__all__ = ["lr_multiplier", "steps_of_share"]


def steps_of_share(share: float, total: int) -> int:
    """Return the number of steps that ``share`` (0 to 1) of ``total`` steps is, rounded half up."""
    return math.floor(share * total + 0.5)  # round() would take the even one of two neighbors


def lr_multiplier(step: int, total: int, *, schedule: str, warmup: int) -> float:
    """Return what the highest learning rate is multiplied by, from 0 to 1.

    1. In the first ``warmup`` steps it rises linearly from 0 and would be 1 in the step after them.
    2. ``linear``: it falls linearly and would be 0 in the step after the last one.
    3. ``cosine``: it falls like the first half of a cosine (Loshchilov and Hutter 2017, arXiv 1608.03983).
    4. ``constant``: it stays 1.

    Args:
        step: Steps that are done, 0 for the first step.
        total: Steps of the training.
        schedule: One of the names above.
        warmup: Steps of the warm-up.
    """
    if step < warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
