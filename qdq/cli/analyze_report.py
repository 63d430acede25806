"""What ``qdq analyze`` shows people."""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING

from qdq.cli.tables import new_table

if TYPE_CHECKING:
    from rich.table import Table

    from calibration.sensitivity.similarity import Similarity
    from qdq.analysis.findings import Findings

__all__ = ["shown"]


def shown(found: Findings, top: int | None) -> list[Table | str]:
    """Return a title, the table of the ``top`` groups, and what to keep in float first."""
    assert found.ranking is not None
    quantized = found.ranking.quantized
    title = (
        f"{found.path} by {found.by}, {found.ranking.samples} samples: SQNR {quantized.sqnr_db:.2f} dB, "
        f"cosine {quantized.cosine:.5f} with everything quantized"
    )
    lines: list[Table | str] = [title]
    if found.metric is not None:
        known = "" if found.metric.quantized is None else f", {_shown(found.metric.quantized)} quantized"
        lines.append(f"{found.metric.name}: float {_shown(found.metric.in_float)}{known}")
    rest = len(found.ranking.rows) - len(found.shown(top))
    lines += ["", _table(found, top), *([f"and {rest} that cost less"] if rest else []), ""]
    return [*lines, *_advice(found)]


def _table(found: Findings, top: int | None) -> Table:
    metric = found.metric
    extra = () if metric is None else (f"alone\n{metric.name}", f"without\n{metric.name}")
    table = new_table(
        found.by, "share of\nnoise", "alone\nSQNR dB", "alone\ncosine", "without\nSQNR dB", "without\ncosine", *extra
    )
    for row in found.shown(top):
        figures = [*_figures(row.alone), *_figures(row.without)]
        cells = () if metric is None else metric.groups.get(row.group, (None, None))
        table.add_row(row.group.name, f"{100 * row.share:.1f} %", *figures, *map(_shown, cells))
    return table


def _advice(found: Findings) -> list[str]:
    if found.target is None:
        first = found.first()
        if first is None:
            return ["nothing to switch off: the model is no closer to float without any of them"]
        return [
            f"switch off first (SQNR {first.without.sqnr_db:.2f} dB, cosine {first.without.cosine:.5f} then): "
            f"{_options(first.group.exclude)}"
        ]
    asked = " and ".join(
        [f"cosine {found.target.cosine}"] * (found.target.cosine is not None)
        + [f"SQNR {found.target.sqnr_db} dB"] * (found.target.sqnr_db is not None)
    )
    if not found.steps:
        return [f"not searched yet: what to switch off for {asked}"]
    last = found.steps[-1]
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
