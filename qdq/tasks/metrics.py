"""Metrics of a table of examples: their value, and their values under other weights of the examples.

The weights are what a bootstrap needs: a resample that holds an example twice gives it the weight 2. Values come from
torchmetrics where it is right:

1. accuracy, F1 and Pearson are its own;
2. Spearman is its Pearson of our ranks, since it sums the ranks of equal values in 32 bits, which overflows from some
   65,000 of them on;
3. Matthews is ours: its own subtracts large products in float32, and calls a constant prediction of two classes a
   correlation of 1;
4. SQuAD's figures are in ``squad``: it takes no question without answer;
5. recall and reciprocal rank are means of what ``retrieval`` finds per query: it keeps every score of every query, and
   takes a passage at a negative cosine for one that was not found.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from qdq.errors import MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from qdq.tasks.table import Numbers, Table

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
    "torchmetrics_functions",
]


@dataclass(frozen=True)
class Metric:
    """One figure of a table.

    Args:
        name: in reports.
        value: of the table; NaN where it is not defined.
        weighted: of the table under weights ``(resamples, rows)``, values ``(resamples,)``.
        better: the direction of progress.
        scale: what people multiply it with: 100 for shares and correlations, 1 for perplexity. A point is 1 after that.
    """

    name: str
    value: Callable[[Table], float]
    weighted: Callable[[Table, Numbers], Numbers]
    better: Literal["higher", "lower"] = "higher"
    scale: float = 100.0

    def loss(self, value: float, baseline: float) -> float:
        """How much worse ``value`` is than ``baseline``, in points; negative when it is better."""
        return self.scale * (baseline - value if self.better == "higher" else value - baseline)


def mean(name: str, column: str | None = None) -> Metric:
    """The mean of a column."""
    return Metric(name, partial(_mean, column=column or name), partial(_weighted_mean, column=column or name))


def mean_squared_error(prediction: str, label: str) -> Metric:
    """The mean of the squared differences of two columns, in the labels' own unit."""

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
    """The sum of a column over the sum of another."""

    def weighted(table: Table, weights: Numbers) -> Numbers:
        return _divide(weights @ table[over], weights @ table[under])

    return Metric(name, _of_all(weighted), weighted)


def perplexity(log_likelihood: str, tokens: str) -> Metric:
    """The exponential of minus the mean log-likelihood (natural logarithm) of a token."""

    def weighted(table: Table, weights: Numbers) -> Numbers:
        with np.errstate(over="ignore"):  # infinite is a fair word for it
            result: Numbers = np.exp(-_divide(weights @ table[log_likelihood], weights @ table[tokens]))
        return result

    return Metric("perplexity", _of_all(weighted), weighted, better="lower", scale=1.0)


def overlap(hits: str, predicted: str, true: str, *, suffix: str = "") -> tuple[Metric, Metric, Metric]:
    """F1, precision and recall of things found, summed over all examples; 0 where nothing is found, as is usual."""

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
    """Accuracy, F1 and Matthews' correlation of class numbers 0 .. ``classes`` - 1.

    F1 is that of class 1 when there are two, as GLUE has it, and else ``f1_macro``, the mean over the classes that
    occur. Matthews' correlation (Gorodkin's for more than two classes) is 0 for constant predictions or labels.
    """

    def tensors(table: Table) -> tuple[Any, Any]:
        import torch

        return tuple(torch.from_numpy(table[name].astype(np.int64)) for name in (prediction, label))  # type: ignore[return-value]

    def accuracy(table: Table) -> float:
        found = torchmetrics_functions().classification.multiclass_accuracy(
            *tensors(table), num_classes=max(classes, 2), average="micro"
        )
        return float(found)

    def f1(table: Table) -> float:
        functions = torchmetrics_functions().classification
        if classes == 2:
            return float(functions.binary_f1_score(*tensors(table)))
        return float(functions.multiclass_f1_score(*tensors(table), num_classes=classes, average="macro"))

    def counts(table: Table, weights: Numbers) -> tuple[Numbers, Numbers, Numbers]:
        """How often each class is right, predicted and true: ``(resamples, classes)`` each."""
        predicted, true = (_one_hot(table[name], classes) for name in (prediction, label))
        return weights @ (predicted * true), weights @ predicted, weights @ true

    def weighted_accuracy(table: Table, weights: Numbers) -> Numbers:
        return _divide(weights @ (table[prediction] == table[label]).astype(np.float64), weights.sum(axis=1))

    def weighted_f1(table: Table, weights: Numbers) -> Numbers:
        right, predicted, true = counts(table, weights)
        score = _divide(2 * right, predicted + true, empty=0.0)
        if classes == 2:
            return score[:, 1]
        return _divide(score.sum(axis=1), (predicted + true > 0).sum(axis=1).astype(np.float64))

    def weighted_matthews(table: Table, weights: Numbers) -> Numbers:
        right, predicted, true = counts(table, weights)
        total = weights.sum(axis=1)
        covariance = right.sum(axis=1) * total - (predicted * true).sum(axis=1)
        spread = (total**2 - (predicted**2).sum(axis=1)) * (total**2 - (true**2).sum(axis=1))
        return _divide(covariance, np.sqrt(spread), empty=0.0)

    return (
        Metric("accuracy", accuracy, weighted_accuracy),
        Metric("f1" if classes == 2 else "f1_macro", f1, weighted_f1),
        Metric("matthews", _of_all(weighted_matthews), weighted_matthews),
    )


# --- correlation ---


def correlations(first: str, second: str) -> tuple[Metric, Metric]:
    """Spearman's and Pearson's correlation of two columns; NaN where one of them is constant."""

    def pearson(table: Table) -> float:
        return _pearson(table[first], table[second])

    def spearman(table: Table) -> float:
        one = np.ones((1, len(table[first])))
        return _pearson(ranks(table[first], one)[0], ranks(table[second], one)[0])

    def weighted_pearson(table: Table, weights: Numbers) -> Numbers:
        x, y = (table[name] - table[name].mean() for name in (first, second))  # centred: sums of squares cancel less
        total, sum_x, sum_y, xx, yy, xy = (weights @ v for v in (np.ones_like(x), x, y, x * x, y * y, x * y))
        spread = _spread(total, sum_x, xx) * _spread(total, sum_y, yy)
        return _divide(total * xy - sum_x * sum_y, np.sqrt(spread))

    def weighted_spearman(table: Table, weights: Numbers) -> Numbers:
        middle = (weights.sum(axis=1, keepdims=True) + 1) / 2  # the mean of all ranks
        x, y = (ranks(table[name], weights) - middle for name in (first, second))
        xx, yy, xy = (np.einsum("rn,rn,rn->r", weights, a, b) for a, b in ((x, x), (y, y), (x, y)))
        return _divide(xy, np.sqrt(xx * yy))

    return Metric("spearman", spearman, weighted_spearman), Metric("pearson", pearson, weighted_pearson)


def ranks(values: Numbers, weights: Numbers) -> Numbers:
    """Ranks ``(resamples, rows)``, from 1, of values ``(rows,)`` of which each is there ``weights`` times.

    Equal values, and the copies of one, have the mean of their ranks.
    """
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    is_new = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    group = np.empty(len(values), dtype=np.int64)
    group[order] = np.cumsum(is_new) - 1
    sizes = np.add.reduceat(weights[:, order], np.flatnonzero(is_new), axis=1)
    result: Numbers = (np.cumsum(sizes, axis=1) - (sizes - 1) / 2)[:, group]
    return result


def torchmetrics_functions() -> ModuleType:
    """The functions of torchmetrics.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        import torchmetrics.functional as functions
    except ModuleNotFoundError as error:
        raise MissingPackageError("torchmetrics", extra="evaluate", purpose="evaluating a model") from error
    return functions


def _pearson(x: Numbers, y: Numbers) -> float:
    import torch

    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(torchmetrics_functions().pearson_corrcoef(torch.from_numpy(x), torch.from_numpy(y)))


def _mean(table: Table, *, column: str) -> float:
    return float(table[column].mean())


def _weighted_mean(table: Table, weights: Numbers, *, column: str) -> Numbers:
    return _divide(weights @ table[column], weights.sum(axis=1))


def _of_all(weighted: Callable[[Table, Numbers], Numbers]) -> Callable[[Table], float]:
    """The value under the weight 1 for every example."""
    return lambda table: float(weighted(table, np.ones((1, len(next(iter(table.values()))))))[0])


def _spread(total: Numbers, sums: Numbers, squares: Numbers) -> Numbers:
    """``total**2`` times the variance, and exactly 0 where it is only what rounding left."""
    spread: Numbers = total * squares - sums**2
    kept: Numbers = np.where(spread > 1e-12 * total * squares, spread, 0.0)
    return kept


def _one_hot(numbers: Numbers, classes: int) -> Numbers:
    is_class: Numbers = (numbers[:, np.newaxis] == np.arange(classes)).astype(np.float64)
    return is_class


def _divide(over: Numbers, under: Numbers, *, empty: float = float("nan")) -> Numbers:
    """``over / under``, and ``empty`` where that is nothing by nothing."""
    quotient: Numbers = np.divide(over, under, out=np.full(np.shape(over), empty), where=under > 0)
    return quotient
