"""The drop that a user is willing to accept: ``1%`` of the baseline, or ``0.5`` points."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError

if TYPE_CHECKING:
    from qdq.tasks.metrics import Metric

__all__ = ["Drop", "MaxDrop"]

_ROUNDING = 1e-9  # a drop of exactly the limit holds, however it was rounded


@dataclass(frozen=True)
class MaxDrop:
    """A limit: percent of the baseline's figure, or points.

    A point is a hundredth for what people quote times a hundred (accuracy, F1, correlations), and 1 for perplexity.
    """

    limit: float
    is_percent: bool

    @classmethod
    def parse(cls, text: str | float) -> MaxDrop:
        """Read ``"1%"``, ``"0.5"`` or a number of points.

        Raises:
            ConfigError: it is neither, or negative.
        """
        written = str(text).strip()
        try:
            limit = float(written.removesuffix("%"))
        except ValueError:
            limit = math.nan
        if not 0 <= limit < math.inf:
            raise ConfigError(
                f"the largest drop is {text!r}, must be a number of at least 0: "
                "0.5 for half a point, 1% of the baseline"
            )
        return cls(limit, written.endswith("%"))

    def __str__(self) -> str:
        return f"{self.limit:g}{'%' if self.is_percent else ' points'}"

    def judge(self, metric: Metric, value: float, baseline: float) -> Drop:
        """How far ``value`` is below ``baseline``, and whether that is within the limit; an undefined value is not."""
        loss = metric.loss(value, baseline)
        if self.is_percent:
            whole = abs(metric.scale * baseline)
            loss = 100 * loss / whole if whole else math.copysign(math.inf, loss) if loss else 0.0
        return Drop(metric.name, loss, self, loss <= self.limit + _ROUNDING)


@dataclass(frozen=True)
class Drop:
    """The outcome: how much ``metric`` got worse, in the limit's unit (negative when it got better)."""

    metric: str
    drop: float
    limit: MaxDrop
    holds: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values; a drop that is not a number is None."""
        return {
            "metric": self.metric,
            "drop": self.drop if math.isfinite(self.drop) else None,
            "max_drop": self.limit.limit,
            "unit": "percent of the baseline" if self.limit.is_percent else "points",
            "holds": self.holds,
        }
