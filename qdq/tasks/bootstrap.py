"""Compute confidence intervals and paired comparisons of metrics from resampled examples.

The bootstrap (Efron 1979) draws as many examples as there are, with replacement, and computes the metric again. Its
distribution over many resamples estimates that over many test sets of this size. Nothing is assumed about the metric,
which need not be a mean. The interval is the percentile interval.

Two models are compared on the same resamples, so what makes an example hard for both cancels. The p-value is two-sided:
twice the share of resamples in which the difference has the other sign or is zero, with one added to both counts. It is
the level at which the interval would just touch zero.

A resample is a vector of weights, and each metric is computed for a block of resamples by one matrix product. Examples
with equal numbers are drawn together, since there are few distinct ones when the numbers are only right or wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from qdq.tasks.example_table import rows_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from qdq.tasks.example_table import Numbers, Table
    from qdq.tasks.metrics import Metric

__all__ = ["CONFIDENCE", "Difference", "Interval", "compare", "intervals"]

CONFIDENCE = 0.95
_BLOCK = 1 << 21  # weights that are in memory at a time, 16 MB

Interval = tuple[float, float]


@dataclass(frozen=True)
class Difference:
    """A metric of the model minus that of the baseline.

    Args:
        value: The difference.
        interval: Its 95 % confidence interval; None where there is none.
        p_value: The two-sided p-value of a difference of 0; None where there is no interval.
    """

    value: float
    interval: Interval | None
    p_value: float | None


def intervals(
    metrics: Sequence[Metric], table: Table, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval | None]:
    """Return the 95 % confidence interval of each metric.

    Args:
        metrics: The metrics.
        table: The table of the examples.
        resamples: The number of resamples.
        seed: The seed of the draws.

    Returns:
        By metric, the interval; None for fewer than two examples or a metric that is not defined.
    """
    replicates = _replicates(metrics, [table], resamples, seed)
    return {name: _interval(values[0]) for name, values in replicates.items()}


def compare(
    metrics: Sequence[Metric], table: Table, baseline: Table, *, resamples: int = 1000, seed: int = 0
) -> dict[str, Difference]:
    """Compare each metric of ``table`` with that of ``baseline``, whose rows are the same examples.

    Args:
        metrics: The metrics.
        table: The table of the model.
        baseline: The table of the baseline.
        resamples: The number of resamples.
        seed: The seed of the draws.
    """
    replicates = _replicates(metrics, [table, baseline], resamples, seed)
    result = {}
    for metric in metrics:
        ours, theirs = replicates[metric.name]
        differences = ours - theirs
        interval = _interval(differences)
        known = differences[np.isfinite(differences)]
        p_value = None
        if interval is not None:
            # One is added to both counts, so that a finite number of resamples never gives a p-value of 0.
            fewer = min(int((known <= 0).sum()), int((known >= 0).sum()))
            p_value = min(1.0, 2 * (fewer + 1) / (len(known) + 1))
        result[metric.name] = Difference(metric.value(table) - metric.value(baseline), interval, p_value)
    return result


def _replicates(metrics: Sequence[Metric], tables: Sequence[Table], resamples: int, seed: int) -> dict[str, Numbers]:
    """Return for each metric its values ``(tables, resamples)``."""
    values: dict[str, Numbers] = {metric.name: np.full((len(tables), resamples), np.nan) for metric in metrics}
    rows = rows_of(tables[0])
    if rows < 2 or resamples < 1:
        return values
    # Both tables are resampled with the same weights.
    kinds, counts = _kinds(tables)
    done = 0
    for weights in _draws(counts, rows, resamples, np.random.default_rng(seed)):
        for metric in metrics:
            for index, table in enumerate(kinds):
                values[metric.name][index, done : done + len(weights)] = metric.weighted(table, weights)
        done += len(weights)
    return values


def _kinds(tables: Sequence[Table]) -> tuple[list[Table], Numbers | None]:
    """Merge equal examples and return how many there are of each; return the tables unchanged if few are equal."""
    together = np.column_stack([column for table in tables for column in table.values()])
    kinds, counts = np.unique(together, axis=0, return_counts=True)
    # Drawing counts per kind is only faster when examples repeat often.
    if 4 * len(kinds) > len(together):
        return list(tables), None
    columns = iter(kinds.T)
    return [{name: next(columns) for name in table} for table in tables], counts.astype(np.float64)


def _draws(counts: Numbers | None, rows: int, resamples: int, generator: np.random.Generator) -> Iterator[Numbers]:
    """Yield blocks ``(block, kinds)`` of weights, of which each row is a resample of ``rows`` examples."""
    kinds = rows if counts is None else len(counts)
    block = max(1, _BLOCK // kinds)
    for done in range(0, resamples, block):
        size = min(block, resamples - done)
        if counts is not None:
            yield generator.multinomial(rows, counts / rows, size=size).astype(np.float64)
            continue
        drawn = generator.integers(rows, size=(size, rows))
        # Each resample gets a range of its own, so that one bincount counts all of them.
        drawn += np.arange(size)[:, np.newaxis] * rows
        weights = np.bincount(drawn.reshape(-1), minlength=size * rows)
        yield weights.reshape(size, rows).astype(np.float64)


def _interval(values: Numbers) -> Interval | None:
    known = values[np.isfinite(values)]
    if 2 * len(known) <= len(values):
        return None
    low, high = np.quantile(known, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)
