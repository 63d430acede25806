"""How far a training has come, and what came of it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["TrainingProgress", "TrainingResult", "plain_figures"]


@dataclass
class TrainingProgress:
    """How far a training has come; a resume file holds these fields under their names.

    Args:
        step: Steps that are done.
        epoch: Number of the current epoch, from 0.
        batches: Batches of the current epoch that are done.
        best: Metric of the best evaluation; None before the first one.
        best_step: Step of the best evaluation.
        waited: Evaluations since the best one.
        stopped: Whether the training ended early, because evaluations did not get better.
        losses: Sum and number of the losses since the last row of the log.
        history: Metrics of every evaluation, with its step.
    """

    step: int = 0
    epoch: int = 0
    batches: int = 0
    best: float | None = None
    best_step: int = 0
    waited: int = 0
    stopped: bool = False
    losses: tuple[float, int] = (0.0, 0)
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class TrainingResult:
    """What came of a training.

    Args:
        steps: Steps that were done.
        epochs: Epochs that were finished.
        stopped_early: Whether it ended early, because evaluations did not get better.
        metric: Metric of the best evaluation; None without evaluations, or if it was undefined in all of them.
        best_step: Step of the best evaluation.
        history: Metrics of every evaluation, with its step.
        seconds: Duration; what was done before a resume does not count.
        log: Table of losses, learning rates and metrics, as CSV.
    """

    steps: int
    epochs: int
    stopped_early: bool
    metric: float | None
    best_step: int
    history: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0
    log: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, without the log; metrics that are not finite become None."""
        values = {name: value for name, value in asdict(self).items() if name != "log"}
        return {**values, "history": [plain_figures(row) for row in self.history]}


def plain_figures(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Return figures for JSON, which cannot hold NaN and infinity: they become None."""
    return {name: value if math.isfinite(value) else None for name, value in figures.items()}
