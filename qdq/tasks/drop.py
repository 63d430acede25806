"""Judge how far a metric is below a baseline, against the largest drop that a user accepts."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError

if TYPE_CHECKING:
    from qdq.tasks.metrics import Metric

__all__ = ["Drop", "MaxDrop"]

_ROUNDING = 1e-9  # a drop of exactly the limit holds in spite of rounding errors


@dataclass(frozen=True)
class MaxDrop:
    """The largest drop that is accepted.

    A point is one hundredth of a metric that is usually quoted as a percentage (accuracy, F1, correlations), and 1 for
    perplexity.

    Args:
        limit: The largest drop, in percent or points.
        is_percent: Whether the limit is in percent of the baseline's figure, and not in points.
    """

    limit: float
    is_percent: bool

    @classmethod
    def parse(cls, text: str | float) -> MaxDrop:
        """Read ``"1%"``, ``"0.5"`` or a number of points.

        Raises:
            ConfigError: The text is neither, or negative.
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
        """Return how far ``value`` is below ``baseline`` and whether that is within the limit.

        A figure that is undefined (NaN) is never within it, nor is an infinite one: their difference says nothing.
        """
        if not math.isfinite(value) or not math.isfinite(baseline):
            return Drop(metric.name, math.nan, self, holds=False)
        loss = metric.loss(value, baseline)
        if self.is_percent:
            # If the baseline is 0, any loss is infinitely many percent of it.
            whole = abs(metric.scale * baseline)
            loss = 100 * loss / whole if whole else math.copysign(math.inf, loss) if loss else 0.0
        return Drop(metric.name, loss, self, loss <= self.limit + _ROUNDING)


@dataclass(frozen=True)
class Drop:
    """How far a metric is below the baseline.

    Args:
        metric: The name of the metric.
        drop: The drop in the unit of the limit; negative if the model is better, NaN if one of the figures is
            undefined.
        limit: The largest drop that is accepted.
        holds: Whether the drop is within the limit.
    """

    metric: str
    drop: float
    limit: MaxDrop
    holds: bool

    def describe(self, model: str, baseline: str) -> str:
        """Return a sentence about the drop, for models with these names."""
        if math.isnan(self.drop):
            return (
                f"{self.metric} is undefined for {model} or {baseline} on these examples, so no drop can be measured: "
                "give more varied examples, or another metric"
            )
        unit = "%" if self.limit.is_percent else "points"
        return (
            f"{model}: {self.metric} is {self.drop:.2f} {unit} below that of {baseline}, at most {self.limit} is "
            "accepted"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; NaN becomes None."""
        return {
            "metric": self.metric,
            "drop": self.drop if math.isfinite(self.drop) else None,
            "max_drop": self.limit.limit,
            "unit": "percent of the baseline" if self.limit.is_percent else "points",
            "holds": self.holds,
        }
