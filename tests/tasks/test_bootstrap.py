"""Intervals and p-values against scipy's bootstrap, and their coverage."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import scipy.stats

from qdq.tasks.bootstrap import compare, intervals
from qdq.tasks.metrics import classification, correlations, mean, overlap

if TYPE_CHECKING:
    from qdq.tasks.example_table import Numbers
    from qdq.tasks.metrics import Metric

SPEARMAN, PEARSON = correlations("x", "y")


def correlated(seed: int, rows: int = 300, noise: float = 1.0) -> dict[str, Numbers]:
    generator = np.random.default_rng(seed)
    x = generator.normal(size=rows)
    return {"x": x, "y": x + noise * generator.normal(size=rows)}


@pytest.mark.parametrize(("metric", "statistic"), [(SPEARMAN, "spearmanr"), (PEARSON, "pearsonr")], ids=["s", "p"])
def test_the_interval_of_a_correlation_is_that_of_scipy(metric: Metric, statistic: str) -> None:
    table = correlated(1)
    expected = scipy.stats.bootstrap(
        (table["x"], table["y"]),
        lambda x, y: getattr(scipy.stats, statistic)(x, y).statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=1000,
        rng=np.random.default_rng(5),
    ).confidence_interval
    found = intervals([metric], table, resamples=4000)[metric.name]
    assert found is not None
    # two estimates of a quantile from 1,000 and 4,000 resamples differ by a tenth of the interval's width at most
    assert found == pytest.approx(tuple(expected), abs=0.1 * (expected.high - expected.low))


@pytest.mark.parametrize("rows", [200, 3], ids=["drawn-by-kind", "drawn-one-by-one"])
def test_equal_examples_drawn_together_are_drawn_as_before(rows: int) -> None:
    """Right and wrong are two kinds of examples; a column of different numbers beside them makes every row its own."""
    right = (np.arange(rows) % 3 > 0).astype(float)
    alone = intervals([mean("right")], {"right": right}, resamples=4000)["right"]
    beside = intervals([mean("right")], {"right": right, "other": np.arange(rows, dtype=float)}, resamples=4000)[
        "right"
    ]
    exact = scipy.stats.binom(rows, right.mean()).ppf([0.025, 0.975]) / rows
    assert alone == pytest.approx(tuple(exact), abs=2 / rows)
    assert beside == pytest.approx(tuple(exact), abs=2 / rows)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    """Of a correlation known to be 1 / sqrt(2), in 200 samples: about 190 times; fewer than 178 is 4 in 100,000."""
    covered = 0
    for seed in range(200):
        found = intervals([PEARSON], correlated(seed, rows=80), resamples=300)["pearson"]
        assert found is not None
        covered += found[0] <= np.sqrt(0.5) <= found[1]
    assert 174 <= covered <= 199


def test_the_same_seed_gives_the_same_interval() -> None:
    table = correlated(2)
    first, again, other = (intervals([SPEARMAN], table, resamples=200, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_no_interval_where_there_is_nothing_to_draw() -> None:
    table = {"right": np.ones(1)}
    assert intervals([mean("right")], table) == {"right": None}
    assert intervals([mean("right")], {"right": np.ones(5)}, resamples=0) == {"right": None}
    constant = {"x": np.ones(20), "y": np.arange(20.0)}
    assert intervals([SPEARMAN], constant, resamples=50) == {"spearman": None}


def test_a_model_against_itself() -> None:
    table = correlated(3)
    found = compare([SPEARMAN, PEARSON], table, table, resamples=200)
    for difference in found.values():
        assert (difference.value, difference.interval, difference.p_value) == (0.0, (0.0, 0.0), 1.0)


def test_a_clear_loss_is_significant_and_a_coin_is_not() -> None:
    good, bad = correlated(4, noise=0.3), correlated(4, noise=1.0)
    found = compare([SPEARMAN], bad, good, resamples=999)["spearman"]
    assert found.interval is not None
    assert found.interval[0] < found.value < found.interval[1] < 0
    assert found.p_value == pytest.approx(2 / 1000)
    generator = np.random.default_rng(6)
    one, two = ({"right": generator.integers(2, size=400).astype(float)} for _ in range(2))
    coin = compare([mean("right")], one, two, resamples=999)["right"]
    assert coin.p_value is not None
    assert coin.p_value > 0.05


def test_the_paired_p_value_is_near_the_exact_sign_test() -> None:
    """30 examples one model alone has right, 14 the other alone: McNemar's exact test."""
    one = np.concatenate([np.ones(100), np.ones(30), np.zeros(14)])
    two = np.concatenate([np.ones(100), np.zeros(30), np.ones(14)])
    found = compare([mean("right")], {"right": one}, {"right": two}, resamples=20_000)["right"]
    exact = scipy.stats.binomtest(14, 44).pvalue
    assert found.p_value == pytest.approx(exact, abs=0.012)


def test_pairing_cancels_what_is_hard_for_both() -> None:
    generator = np.random.default_rng(7)
    hard = generator.integers(2, size=500).astype(float)
    better = np.where(np.arange(500) < 10, 1.0, hard)
    paired = compare([mean("right")], {"right": better}, {"right": hard}, resamples=999)["right"]
    alone = intervals([mean("right")], {"right": hard}, resamples=999)["right"]
    assert paired.interval is not None
    assert alone is not None
    assert paired.interval[1] - paired.interval[0] < 0.5 * (alone[1] - alone[0])


def test_many_metrics_share_their_resamples() -> None:
    generator = np.random.default_rng(8)
    numbers = generator.integers(1, 5, size=(3, 50)).astype(float)
    table = {
        "hits": np.minimum(numbers[0], 2),
        "predicted": numbers[0] + 1,
        "true": numbers[0],
        "prediction": numbers[1] - 1,
        "label": numbers[2] - 1,
    }
    metrics = [*overlap("hits", "predicted", "true"), *classification(4)]
    together = intervals(metrics, table, resamples=100)
    for metric in metrics:
        assert together[metric.name] == intervals([metric], table, resamples=100)[metric.name]
