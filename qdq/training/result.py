"""What came of a training."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["TrainingResult"]


@dataclass(frozen=True)
class TrainingResult:
    """What came of a training.

    Args:
        steps: that were done.
        epochs: that were finished.
        stopped_early: for want of progress.
        metric: of the best evaluation; None without evaluations.
        best_step: when that was.
        history: the figures of every evaluation, with its step.
        seconds: of this run; what it was resumed from does not count.
        log: the table of figures, as CSV.
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
        """Plain values, the table aside."""
        return {name: value for name, value in asdict(self).items() if name != "log"}
