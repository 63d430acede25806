"""What ``qdq analyze`` found, as JSON and for people."""

from __future__ import annotations

import math
import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from qdq.cli.tables import new_table

if TYPE_CHECKING:
    from pathlib import Path

    from rich.table import Table

    from calibration.sensitivity.exclusions import SearchStep, SimilarityTarget
    from calibration.sensitivity.groups import Group
    from calibration.sensitivity.ranking import GroupSensitivity, Ranking
    from calibration.sensitivity.similarity import Similarity

__all__ = ["Findings", "MetricOf"]


@dataclass
class MetricOf:
    """The metric of a task, in the unit of people.

    Args:
        name: of the metric.
        in_float: of the float model.
        quantized: of the whole quantized one.
        groups: of each group alone, and of all but it.
    """

    name: str
    in_float: float
    quantized: float | None = None
    groups: dict[Group, tuple[float, float]] = field(default_factory=dict)


@dataclass
class Findings:
    """What is known so far: everything, or what there was when somebody lost patience.

    Args:
        path: of the checkpoint.
        by: how slots were grouped.
        target: what to reach.
        ranking: of the groups.
        steps: of the search for what to switch off.
        metric: of a task.
        complete: whether nothing is missing.
    """

    path: Path
    by: str
    target: SimilarityTarget | None
    ranking: Ranking | None = None
    steps: list[SearchStep] = field(default_factory=list)
    metric: MetricOf | None = None
    complete: bool = False

    def shown(self, top: int | None) -> tuple[GroupSensitivity, ...]:
        """The groups that cost most, ``top`` of them."""
        return self.ranking.rows[:top] if self.ranking else ()

    def to_dict(self, top: int | None) -> dict[str, Any]:
        """The document."""
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
            first = self._first()
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

    def _first(self) -> GroupSensitivity | None:
        """The group without which the model is closest to float, if it is closer then."""
        assert self.ranking is not None
        best = min(self.ranking.rows, key=lambda row: row.without.noise, default=None)
        return best if best and best.without.noise < self.ranking.quantized.noise else None

    def to_text(self, top: int | None) -> list[Table | str]:
        """A title, the table, and what to switch off first."""
        assert self.ranking is not None
        quantized = self.ranking.quantized
        title = (
            f"{self.path} by {self.by}, {self.ranking.samples} samples: SQNR {quantized.sqnr_db:.2f} dB, "
            f"cosine {quantized.cosine:.5f} with everything quantized"
        )
        lines: list[Table | str] = [title]
        if self.metric is not None:
            known = "" if self.metric.quantized is None else f", {_shown(self.metric.quantized)} quantized"
            lines.append(f"{self.metric.name}: float {_shown(self.metric.in_float)}{known}")
        rest = len(self.ranking.rows) - len(self.shown(top))
        lines += ["", self._table(top), *([f"and {rest} that cost less"] if rest else []), ""]
        return [*lines, *self._advice()]

    def _table(self, top: int | None) -> Table:
        metric = self.metric
        extra = () if metric is None else (f"alone\n{metric.name}", f"without\n{metric.name}")
        table = new_table(
            self.by, "share of\nnoise", "alone\nSQNR dB", "alone\ncosine", "without\nSQNR dB", "without\ncosine", *extra
        )
        for row in self.shown(top):
            figures = [*_figures(row.alone), *_figures(row.without)]
            cells = () if metric is None else metric.groups.get(row.group, (None, None))
            table.add_row(row.group.name, f"{100 * row.share:.1f} %", *figures, *map(_shown, cells))
        return table

    def _advice(self) -> list[str]:
        if self.target is None:
            first = self._first()
            if first is None:
                return ["nothing to switch off: the model is no closer to float without any of them"]
            return [
                f"switch off first (SQNR {first.without.sqnr_db:.2f} dB, cosine {first.without.cosine:.5f} then): "
                f"{_options(first.group.exclude)}"
            ]
        asked = " and ".join(
            [f"cosine {self.target.cosine}"] * (self.target.cosine is not None)
            + [f"SQNR {self.target.sqnr_db} dB"] * (self.target.sqnr_db is not None)
        )
        if not self.steps:
            return [f"not searched yet: what to switch off for {asked}"]
        last = self.steps[-1]
        state = f"SQNR {last.similarity.sqnr_db:.2f} dB, cosine {last.similarity.cosine:.5f}"
        if not last.excluded:
            return [f"{asked} is reached with everything quantized" if last.reached else f"not searched yet: {asked}"]
        beginning = f"to reach {asked}" if last.reached else f"not enough yet for {asked}"
        return [f"{beginning}, switch off {len(last.excluded)} ({state} then):", f"  {_options(last.exclude)}"]


def _figures(similarity: Similarity) -> tuple[str, str]:
    return f"{similarity.sqnr_db:.2f}", f"{similarity.cosine:.5f}"


def _options(patterns: tuple[str, ...]) -> str:
    return shlex.join(word for pattern in patterns for word in ("--exclude", pattern))


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}" if math.isfinite(value) else "undefined"


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
