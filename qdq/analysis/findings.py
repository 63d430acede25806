"""What an analysis found."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from calibration.sensitivity.exclusions import SearchStep, SimilarityTarget
    from calibration.sensitivity.groups import Group
    from calibration.sensitivity.ranking import GroupSensitivity, Ranking

__all__ = ["Findings", "MetricFigures"]


@dataclass
class MetricFigures:
    """Figures of a task's metric, in the unit that people use.

    Args:
        name: Name of the metric.
        in_float: The metric of the float model.
        quantized: The metric with everything quantized; None if it was not measured yet.
        groups: For each group the metric with it alone quantized, and with all but it.
    """

    name: str
    in_float: float
    quantized: float | None = None
    groups: dict[Group, tuple[float, float]] = field(default_factory=dict)


@dataclass
class Findings:
    """Everything that an analysis found, or what it had found when it was interrupted.

    Args:
        path: Directory of the checkpoint.
        by: How slots were grouped.
        target: How close to the float model the model was to come, if that was asked for.
        batches_planned: Number of batches to measure on.
        ranking: The groups, the most costly first.
        steps: States of the search for what to keep in float.
        metric: The metric of a task, if one was asked for.
        complete: Whether nothing is missing.
    """

    path: Path
    by: str
    target: SimilarityTarget | None
    batches_planned: int = 0
    ranking: Ranking | None = None
    steps: list[SearchStep] = field(default_factory=list)
    metric: MetricFigures | None = None
    complete: bool = False

    def shown(self, top: int | None) -> tuple[GroupSensitivity, ...]:
        """Return the ``top`` groups that cost most, or all of them."""
        return self.ranking.rows[:top] if self.ranking else ()

    def to_dict(self, top: int | None) -> dict[str, Any]:
        """Return plain values for JSON, with the ``top`` groups that cost most."""
        assert self.ranking is not None
        quantized: dict[str, Any] = self.ranking.quantized.to_dict()
        rows = [row.to_dict() for row in self.shown(top)]
        document: dict[str, Any] = {
            "checkpoint": self.path,
            "by": self.by,
            "complete": self.complete,
            "batches": self.ranking.batches,
            "samples": self.ranking.samples,
            "quantized": quantized,
            "groups_total": len(self.ranking.rows),
            "groups": rows,
        }
        if self.metric is not None:
            document["metric"] = {"name": self.metric.name, "float": _number(self.metric.in_float)}
            quantized["metric"] = _number(self.metric.quantized)
            for row, entry in zip(self.shown(top), rows, strict=True):
                alone, without = self.metric.groups.get(row.group, (None, None))
                entry["alone"]["metric"], entry["without"]["metric"] = _number(alone), _number(without)
        document["switch_off"] = self._switch_off()
        return document

    def _switch_off(self) -> dict[str, Any]:
        if self.target is None:
            first = self.first()
            return {
                "target": None,
                "reached": None,
                "exclude": list(first.group.exclude) if first else [],
                "steps": [],
                **(first.without.to_dict() if first else {}),
            }
        last = self.steps[-1] if self.steps else None
        return {
            "target": self.target.to_dict(),
            "reached": last.reached if last else False,
            "exclude": list(last.exclude) if last else [],
            "steps": [step.to_dict() for step in self.steps],
            **(last.similarity.to_dict() if last else {}),
        }

    def first(self) -> GroupSensitivity | None:
        """Return the group to keep in float first, if the model comes closer to float without any group."""
        assert self.ranking is not None
        best = min(self.ranking.rows, key=lambda row: row.without.noise, default=None)
        return best if best and best.without.noise < self.ranking.quantized.noise else None


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
