"""Metrics of a table of examples, and their values when examples have weights.

A bootstrap needs the weights: an example that a resample holds twice has the weight 2. All sums are taken in float64.
The figures equal those of torchmetrics, scikit-learn and scipy where these are right.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from qdq.tasks.example_table import Numbers, Table

__all__ = [
    "Metric",
    "classification",
    "correlations",
    "mean",
    "mean_squared_error",
    "overlap",
    "perplexity",
    "ranks",
    "ratio",
]


@dataclass(frozen=True)
class Metric:
    """One figure of a table.

    Args:
        name: The name in reports.
        value: Computes the metric of a table; NaN where it is not defined.
        weighted: Computes the metric of a table for weights ``(resamples, rows)`` and returns values ``(resamples,)``.
        better: Whether higher or lower is better.
        scale: The factor with which the metric is usually quoted: 100 for shares and correlations, 1 for perplexity.
            One point is 1 after this factor.
        undefined: Where the metric is not defined, in words.
    """

    name: str
    value: Callable[[Table], float]
    weighted: Callable[[Table, Numbers], Numbers]
    better: Literal["higher", "lower"] = "higher"
    scale: float = 100.0
    undefined: str = "there is nothing to count"

    def loss(self, value: float, baseline: float) -> float:
        """Return by how many points ``value`` is worse than ``baseline``; negative if it is better."""
        return self.scale * (baseline - value if self.better == "higher" else value - baseline)


def mean(name: str, column: str | None = None) -> Metric:
    """Return the metric that is the mean of a column, by default the one of the same name."""
    return Metric(name, partial(_mean, column=column or name), partial(_weighted_mean, column=column or name))


def mean_squared_error(prediction: str, label: str) -> Metric:
    """Return the mean of the squared differences of two columns, in the squared unit of the labels."""

    def squares(table: Table) -> Table:
        return {"square": (table[prediction] - table[label]) ** 2}

    return Metric(
        "mse",
        lambda table: _mean(squares(table), column="square"),
        lambda table, weights: _weighted_mean(squares(table), weights, column="square"),
        better="lower",
        scale=1.0,
    )


def ratio(name: str, over: str, under: str) -> Metric:
    """Return the sum of one column divided by the sum of another."""

    def weighted(table: Table, weights: Numbers) -> Numbers:
        return _divide(weights @ table[over], weights @ table[under])

    return Metric(name, _of_all(weighted), weighted)


def perplexity(log_likelihood: str, tokens: str) -> Metric:
    """Return the exponential of the negative mean log-likelihood (natural logarithm) of a token."""

    def weighted(table: Table, weights: Numbers) -> Numbers:
        with np.errstate(over="ignore"):  # an overflow to infinity is the right result
            result: Numbers = np.exp(-_divide(weights @ table[log_likelihood], weights @ table[tokens]))
        return result

    return Metric("perplexity", _of_all(weighted), weighted, better="lower", scale=1.0)


def overlap(hits: str, predicted: str, true: str, *, suffix: str = "") -> tuple[Metric, Metric, Metric]:
    """Return F1, precision and recall of counts that are summed over all examples; 0 where nothing is found.

    Args:
        hits: The column with the number of right predictions.
        predicted: The column with the number of predictions.
        true: The column with the number of true items.
        suffix: Added to the names of the metrics.
    """

    def share(name: str, under: Callable[[Table, Numbers], Numbers]) -> Metric:
        def weighted(table: Table, weights: Numbers) -> Numbers:
            return _divide(weights @ table[hits], under(table, weights), empty=0.0)

        return Metric(name + suffix, _of_all(weighted), weighted)

    return (
        share("f1", lambda table, weights: weights @ (table[predicted] + table[true]) / 2),
        share("precision", lambda table, weights: weights @ table[predicted]),
        share("recall", lambda table, weights: weights @ table[true]),
    )


# --- classes ---


def classification(classes: int, *, prediction: str = "prediction", label: str = "label") -> tuple[Metric, ...]:
    """Return accuracy, F1 and Matthews' correlation of class numbers 0 .. ``classes`` - 1.

    With two classes F1 is that of class 1, as in GLUE. With more it is ``f1_macro``, the mean over the classes that
    occur. Matthews' correlation (Gorodkin's for more than two classes) is 0 for constant predictions or labels.
    """

    def counts(table: Table, weights: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """Count how often each class is right, predicted and true: ``(resamples, classes)`` each."""
        predicted, true = (_one_hot(table[name], classes) for name in (prediction, label))
        return weights @ (predicted * true), weights @ predicted, weights @ true

    def accuracy(table: Table, weights: Numbers) -> Numbers:
        return _divide(weights @ (table[prediction] == table[label]).astype(np.float64), weights.sum(axis=1))

    def f1(table: Table, weights: Numbers) -> Numbers:
        right, predicted, true = counts(table, weights)
        score = _divide(2 * right, predicted + true, empty=0.0)
        if classes == 2:
            return score[:, 1]
        # The mean over the classes that occur, as labels or as predictions.
        return _divide(score.sum(axis=1), (predicted + true > 0).sum(axis=1).astype(np.float64))

    def matthews(table: Table, weights: Numbers) -> Numbers:
        right, predicted, true = counts(table, weights)
        total = weights.sum(axis=1)
        # Gorodkin's formula, from counts; in float64 the large products keep their digits.
        covariance = right.sum(axis=1) * total - (predicted * true).sum(axis=1)
        spread = (total**2 - (predicted**2).sum(axis=1)) * (total**2 - (true**2).sum(axis=1))
        return _divide(covariance, np.sqrt(spread), empty=0.0)

    return (
        Metric("accuracy", _of_all(accuracy), accuracy),
        Metric("f1" if classes == 2 else "f1_macro", _of_all(f1), f1),
        Metric("matthews", _of_all(matthews), matthews),
    )


# --- correlation ---


def correlations(first: str, second: str) -> tuple[Metric, Metric]:
    """Return Spearman's and Pearson's correlation of two columns; NaN where one of them is constant."""

    def pearson(table: Table) -> float:
        return _pearson(table[first], table[second])

    def spearman(table: Table) -> float:
        # Spearman's correlation is Pearson's of the ranks.
        one = np.ones((1, len(table[first])))
        return _pearson(ranks(table[first], one)[0], ranks(table[second], one)[0])

    def weighted_pearson(table: Table, weights: Numbers) -> Numbers:
        # Centred, because the differences of sums below would otherwise cancel most of their digits.
        x, y = (table[name] - table[name].mean() for name in (first, second))
        total, sum_x, sum_y, xx, yy, xy = (weights @ v for v in (np.ones_like(x), x, y, x * x, y * y, x * y))
        spread = _spread(total, sum_x, xx) * _spread(total, sum_y, yy)
        return _divide(total * xy - sum_x * sum_y, np.sqrt(spread))

    def weighted_spearman(table: Table, weights: Numbers) -> Numbers:
        middle = (weights.sum(axis=1, keepdims=True) + 1) / 2  # the mean of all ranks
        x, y = (ranks(table[name], weights) - middle for name in (first, second))
        xx, yy, xy = (np.einsum("rn,rn,rn->r", weights, a, b) for a, b in ((x, x), (y, y), (x, y)))
        return _divide(xy, np.sqrt(xx * yy))

    why = "all predictions, or all labels, are the same"
    return (
        Metric("spearman", spearman, weighted_spearman, undefined=why),
        Metric("pearson", pearson, weighted_pearson, undefined=why),
    )


def ranks(values: Numbers, weights: Numbers) -> Numbers:
    """Return the ranks, from 1, of values that occur as often as their weights say.

    Equal values, and the copies of one value, have the mean of their ranks.

    Args:
        values: The values ``(rows,)``.
        weights: How often each value occurs ``(resamples, rows)``.

    Returns:
        The ranks ``(resamples, rows)``.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    is_new = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    group = np.empty(len(values), dtype=np.int64)
    group[order] = np.cumsum(is_new) - 1
    sizes = np.add.reduceat(weights[:, order], np.flatnonzero(is_new), axis=1)
    # The last rank of a group is the sum of the sizes so far; its mean rank is (size - 1) / 2 below that.
    result: Numbers = (np.cumsum(sizes, axis=1) - (sizes - 1) / 2)[:, group]
    return result


def _pearson(x: Numbers, y: Numbers) -> float:
    # A constant has no correlation; rounding errors would otherwise give it one.
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    x, y = x - x.mean(), y - y.mean()
    correlation = (x @ y) / (np.sqrt(x @ x) * np.sqrt(y @ y))
    return float(np.clip(correlation, -1.0, 1.0))


def _mean(table: Table, *, column: str) -> float:
    return float(table[column].mean())


def _weighted_mean(table: Table, weights: Numbers, *, column: str) -> Numbers:
    return _divide(weights @ table[column], weights.sum(axis=1))


def _of_all(weighted: Callable[[Table, Numbers], Numbers]) -> Callable[[Table], float]:
    """Return the value of a weighted metric when every example has the weight 1."""
    return lambda table: float(weighted(table, np.ones((1, len(next(iter(table.values()))))))[0])


def _spread(total: Numbers, sums: Numbers, squares: Numbers) -> Numbers:
    """Return ``total**2`` times the variance, and exactly 0 where only rounding errors are left."""
    spread: Numbers = total * squares - sums**2
    kept: Numbers = np.where(spread > 1e-12 * total * squares, spread, 0.0)
    return kept


def _one_hot(numbers: Numbers, classes: int) -> Numbers:
    is_class: Numbers = (numbers[:, np.newaxis] == np.arange(classes)).astype(np.float64)
    return is_class


def _divide(over: Numbers, under: Numbers, *, empty: float = float("nan")) -> Numbers:
    """Return ``over / under``, and ``empty`` where ``under`` is 0."""
    quotient: Numbers = np.divide(over, under, out=np.full(np.shape(over), empty), where=under > 0)
    return quotient
