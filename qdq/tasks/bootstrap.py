"""How sure a figure is: intervals and paired comparisons from resampled examples.

The bootstrap (Efron 1979): draw as many examples as there are, with replacement, and compute the metric again; its
spread over many resamples is that of the metric over many test sets of this size. Nothing is assumed about the metric,
which need not be a mean. The interval is the percentile interval.

Two models are compared on the same examples: both metrics from the same resamples, so what makes an example hard for
both cancels. The p-value is two-sided: twice the share of resamples, one added to both counts, in which the difference
has the other sign or is zero. It is the level at which the interval would just touch zero.

A resample is a vector of weights, and all metrics are computed for a block of them by one product of matrices. Examples
with equal numbers (there are few kinds when the numbers are right and wrong) are drawn together.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qdq.tasks.table import rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qdq.tasks.metrics import Metric
    from qdq.tasks.table import Numbers, Table

__all__ = ["CONFIDENCE", "Difference", "Interval", "compare", "intervals"]

CONFIDENCE = 0.95
_BLOCK = 1 << 21  # weights held at once, 16 MB

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """A metric of the model minus that of the baseline; None where there is no saying."""

    value: float
    interval: Interval | None
    p_value: float | None


def intervals(
    metrics: Sequence[Metric], table: Table, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval | None]:
    """The 95 % interval of every metric; None with fewer than two examples or where a metric is not defined."""
    replicates = _replicates(metrics, [table], resamples, seed)
    return {name: _interval(values[0]) for name, values in replicates.items()}


def compare(
    metrics: Sequence[Metric], table: Table, baseline: Table, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Difference]:
    """Every metric of ``table`` against that of ``baseline``, whose rows are the same examples."""
    replicates = _replicates(metrics, [table, baseline], resamples, seed)
    result = {}
    for metric in metrics:
        ours, theirs = replicates[metric.name]
        differences = ours - theirs
        interval = _interval(differences)
        known = differences[np.isfinite(differences)]
        p_value = None
        if interval is not None:
            fewer = min(int((known <= 0).sum()), int((known >= 0).sum()))
            p_value = min(1.0, 2 * (fewer + 1) / (len(known) + 1))
        result[metric.name] = Difference(metric.value(table) - metric.value(baseline), interval, p_value)
    return result


def _replicates(metrics: Sequence[Metric], tables: Sequence[Table], resamples: int, seed: int) -> dict[str, Numbers]:
    """For every metric its values ``(tables, resamples)``."""
    values: dict[str, Numbers] = {metric.name: np.full((len(tables), resamples), np.nan) for metric in metrics}
    rows = rows_of(tables[0])
    if rows < 2 or resamples < 1:
        return values
    kinds, counts = _kinds(tables)
    done = 0
    for weights in _draws(counts, rows, resamples, np.random.default_rng(seed)):
        for metric in metrics:
            for index, table in enumerate(kinds):
                values[metric.name][index, done : done + len(weights)] = metric.weighted(table, weights)
        done += len(weights)
    return values


def _kinds(tables: Sequence[Table]) -> tuple[list[Table], Numbers | None]:
    """The tables with equal examples only once, and how many there are of each kind; or as they are, if too many."""
    together = np.column_stack([column for table in tables for column in table.values()])
    kinds, counts = np.unique(together, axis=0, return_counts=True)
    if 4 * len(kinds) > len(together):
        return list(tables), None
    columns = iter(kinds.T)
    return [{name: next(columns) for name in table} for table in tables], counts.astype(np.float64)


def _draws(counts: Numbers | None, rows: int, resamples: int, generator: np.random.Generator) -> Iterator[Numbers]:
    """Blocks ``(block, kinds)`` of weights, each row a resample of ``rows`` examples."""
    kinds = rows if counts is None else len(counts)
    block = max(1, _BLOCK // kinds)
    for done in range(0, resamples, block):
        size = min(block, resamples - done)
        if counts is not None:
            yield generator.multinomial(rows, counts / rows, size=size).astype(np.float64)
            continue
        drawn = generator.integers(rows, size=(size, rows))
        drawn += np.arange(size)[:, np.newaxis] * rows
        weights = np.bincount(drawn.reshape(-1), minlength=size * rows)
        yield weights.reshape(size, rows).astype(np.float64)


def _interval(values: Numbers) -> Interval | None:
    known = values[np.isfinite(values)]
    if 2 * len(known) <= len(values):
        return None
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
