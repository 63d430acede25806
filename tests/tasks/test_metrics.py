"""Every metric against an independent computation, and its value under weights against its value of the copies."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics
import torch
import torchmetrics

from qdq.tasks.metrics import (
    Metric,
    classification,
    correlations,
    mean,
    mean_squared_error,
    overlap,
    perplexity,
    ranks,
    ratio,
)

if TYPE_CHECKING:
    from qdq.tasks.example_table import Numbers

EXACT = 1e-6
RANDOM = np.random.default_rng(11)


def named(metrics: tuple[Metric, ...]) -> dict[str, Metric]:
    return {metric.name: metric for metric in metrics}


def classes(count: int, rows: int = 400) -> dict[str, Numbers]:
    label = RANDOM.integers(count, size=rows)
    prediction = np.where(RANDOM.random(rows) < 0.6, label, RANDOM.integers(count, size=rows))
    return {"prediction": prediction.astype(float), "label": label.astype(float)}


@pytest.mark.parametrize("rows", [1, 2, 400], ids=lambda rows: f"{rows}-rows")
@pytest.mark.parametrize("count", [2, 3, 7], ids=lambda count: f"{count}-classes")
def test_classification_against_torchmetrics(count: int, rows: int) -> None:
    table = classes(count, rows)
    found = {metric.name: metric.value(table) for metric in classification(count)}
    given = [torch.from_numpy(table[name].astype(np.int64)) for name in ("prediction", "label")]
    functions = torchmetrics.functional.classification
    accuracy = functions.multiclass_accuracy(*given, num_classes=count, average="micro")
    if count == 2:
        f1 = functions.binary_f1_score(*given)
    else:
        f1 = functions.multiclass_f1_score(*given, num_classes=count, average="macro")
    assert found["accuracy"] == pytest.approx(float(accuracy), abs=EXACT)
    assert found["f1" if count == 2 else "f1_macro"] == pytest.approx(float(f1), abs=EXACT)


@pytest.mark.parametrize("rows", [2, 3, 500], ids=lambda rows: f"{rows}-rows")
def test_correlations_against_torchmetrics(rows: int) -> None:
    x = RANDOM.normal(size=rows)
    y = x + RANDOM.normal(size=rows)
    pearson = torchmetrics.functional.pearson_corrcoef(torch.from_numpy(x), torch.from_numpy(y))
    spearman = torchmetrics.functional.spearman_corrcoef(torch.from_numpy(x), torch.from_numpy(y))
    found = {metric.name: metric.value({"x": x, "y": y}) for metric in correlations("x", "y")}
    assert found["pearson"] == pytest.approx(float(pearson), abs=1e-12)
    assert found["spearman"] == pytest.approx(float(spearman), abs=1e-5)  # it adds an epsilon to the deviations


@pytest.mark.parametrize("count", [2, 3, 7], ids=lambda count: f"{count}-classes")
def test_classification_against_scikit_learn(count: int) -> None:
    table = classes(count)
    prediction, label = table["prediction"].astype(int), table["label"].astype(int)
    found = {metric.name: metric.value(table) for metric in classification(count)}
    f1 = sklearn.metrics.f1_score(label, prediction, average="binary" if count == 2 else "macro")
    assert found == {
        "accuracy": pytest.approx(sklearn.metrics.accuracy_score(label, prediction), abs=EXACT),
        "f1" if count == 2 else "f1_macro": pytest.approx(f1, abs=EXACT),
        "matthews": pytest.approx(sklearn.metrics.matthews_corrcoef(label, prediction), abs=EXACT),
    }


def test_classes_that_never_occur_do_not_count_for_macro_f1() -> None:
    table = classes(3)
    found = named(classification(5))["f1_macro"].value(table)
    assert found == pytest.approx(
        sklearn.metrics.f1_score(table["label"].astype(int), table["prediction"].astype(int), average="macro"),
        abs=EXACT,
    )


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("prediction", [0, 1])
def test_matthews_of_a_constant_is_zero(count: int, prediction: int) -> None:
    matthews = named(classification(count))["matthews"]
    label = np.array([1.0, 0, 1, 0, 1])
    assert matthews.value({"prediction": np.full(5, float(prediction)), "label": label}) == 0
    assert sklearn.metrics.matthews_corrcoef(label, np.full(5, prediction)) == 0
    assert matthews.value({"prediction": np.ones(5), "label": np.ones(5)}) == 0


def test_matthews_of_two_million_rows_keeps_its_digits() -> None:
    label = RANDOM.integers(2, size=2_000_000)
    prediction = np.where(RANDOM.random(len(label)) < 0.002, label, RANDOM.integers(2, size=len(label)))
    expected = np.corrcoef(label, prediction)[0, 1]
    found = named(classification(2))["matthews"].value({"label": label * 1.0, "prediction": prediction * 1.0})
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("digits", [15, 1], ids=["all-different", "many-equal"])
def test_correlations_against_scipy(digits: int) -> None:
    x = RANDOM.normal(size=500)
    y = np.round(x + RANDOM.normal(size=500), digits)
    found = {metric.name: metric.value({"x": np.round(x, digits), "y": y}) for metric in correlations("x", "y")}
    assert found == {
        "spearman": pytest.approx(scipy.stats.spearmanr(np.round(x, digits), y).statistic, abs=EXACT),
        "pearson": pytest.approx(scipy.stats.pearsonr(np.round(x, digits), y).statistic, abs=EXACT),
    }


def test_spearman_of_many_equal_values() -> None:
    """Six scores among 300,000 rows: the sum of the ranks of one score does not fit into 32 bits."""
    score = RANDOM.integers(6, size=300_000).astype(float)
    similarity = score + RANDOM.normal(size=len(score))
    expected = scipy.stats.spearmanr(score, similarity).statistic
    found = named(correlations("x", "y"))["spearman"].value({"x": score, "y": similarity})
    assert found == pytest.approx(expected, abs=EXACT)
    theirs = float(torchmetrics.functional.spearman_corrcoef(torch.from_numpy(similarity), torch.from_numpy(score)))
    assert abs(theirs - expected) > 1e-3, "torchmetrics has it right now: use it"


@pytest.mark.parametrize("metric", correlations("x", "y"), ids=lambda metric: metric.name)
def test_a_constant_has_no_correlation(metric: Metric) -> None:
    assert math.isnan(metric.value({"x": np.ones(4), "y": np.arange(4.0)}))
    assert math.isnan(metric.value({"x": np.ones(1), "y": np.ones(1)}))


def test_ranks_against_scipy() -> None:
    values = RANDOM.integers(9, size=40).astype(float)
    np.testing.assert_array_equal(ranks(values, np.ones((1, 40)))[0], scipy.stats.rankdata(values))


def test_perplexity_against_torchmetrics() -> None:
    logits, target = torch.randn(3, 6, 11), torch.randint(11, (3, 6))
    target[0, 2:] = -100
    chosen = logits.log_softmax(-1).gather(-1, target.clamp(min=0)[..., None])[..., 0] * (target >= 0)
    table = {"ll": chosen.sum(1).double().numpy(), "tokens": (target >= 0).sum(1).double().numpy()}
    expected = torchmetrics.text.Perplexity(ignore_index=-100)(logits, target)
    assert perplexity("ll", "tokens").value(table) == pytest.approx(float(expected), rel=1e-6)


def test_mean_squared_error_against_scikit_learn() -> None:
    table = {"prediction": RANDOM.normal(size=30), "label": RANDOM.normal(size=30)}
    expected = sklearn.metrics.mean_squared_error(table["label"], table["prediction"])
    assert mean_squared_error("prediction", "label").value(table) == pytest.approx(expected, abs=EXACT)


def test_nothing_found_is_zero_and_nothing_to_count_is_undefined() -> None:
    empty = {"hits": np.zeros(3), "predicted": np.zeros(3), "true": np.zeros(3)}
    assert [metric.value(empty) for metric in overlap("hits", "predicted", "true")] == [0, 0, 0]
    assert math.isnan(ratio("accuracy", "hits", "true").value(empty))


# --- weights ---

_ROWS = 30
_COUNTS = RANDOM.integers(1, 9, size=_ROWS).astype(float)
TABLE: dict[str, Numbers] = {
    **{name: RANDOM.integers(3, size=_ROWS).astype(float) for name in ("prediction", "label")},
    **{name: RANDOM.integers(2, size=_ROWS).astype(float) for name in ("prediction2", "label2")},
    "x": np.round(RANDOM.normal(size=_ROWS), 1),
    "y": np.round(RANDOM.normal(size=_ROWS), 1),
    "hits": np.minimum(_COUNTS, 2),
    "predicted": _COUNTS + 1,
    "true": _COUNTS,
}
METRICS = {
    "mean": mean("x"),
    "mse": mean_squared_error("x", "y"),
    "ratio": ratio("ratio", "hits", "true"),
    "perplexity": perplexity("x", "true"),
    **{f"{metric.name}-of-3": metric for metric in classification(3)},
    **{f"{metric.name}-of-2": metric for metric in classification(2, prediction="prediction2", label="label2")},
    **named(overlap("hits", "predicted", "true")),
    **named(correlations("x", "y")),
}


@pytest.mark.parametrize("name", METRICS)
def test_a_weight_is_a_number_of_copies(name: str) -> None:
    weights = RANDOM.integers(4, size=(5, _ROWS)).astype(float)
    expected = [
        METRICS[name].value({column: np.repeat(values, row.astype(int)) for column, values in TABLE.items()})
        for row in weights
    ]
    np.testing.assert_allclose(METRICS[name].weighted(TABLE, weights), expected, atol=EXACT)


@pytest.mark.parametrize("name", METRICS)
def test_the_weight_one_gives_the_value(name: str) -> None:
    (found,) = METRICS[name].weighted(TABLE, np.ones((1, _ROWS)))
    assert found == pytest.approx(METRICS[name].value(TABLE), abs=EXACT)


@pytest.mark.parametrize("name", ["spearman", "pearson"])
def test_a_resample_of_one_value_has_no_correlation(name: str) -> None:
    weights = np.zeros((1, _ROWS))
    weights[0, 3] = _ROWS
    assert math.isnan(METRICS[name].weighted(TABLE, weights)[0])
