from __future__ import annotations

import math

import pytest

from qdq.errors import ConfigError
from qdq.tasks.drop import MaxDrop
from qdq.tasks.metrics import Metric, mean, perplexity

ACCURACY, PERPLEXITY = mean("accuracy"), perplexity("ll", "tokens")


@pytest.mark.parametrize(
    ("limit", "value", "baseline", "drop", "holds"),
    [
        ("0.5", 0.905, 0.91, 0.5, True),
        ("0.5", 0.9049, 0.91, 0.51, False),
        (0.5, 0.905, 0.91, 0.5, True),
        ("1%", 0.8514, 0.86, 1.0, True),
        ("1 %", 0.8514, 0.86, 1.0, True),
        ("1%", 0.85, 0.86, 100 / 86, False),
        ("0", 0.91, 0.91, 0.0, True),
        ("0%", 0.92, 0.91, -100 / 91, True),
        ("10%", 0.0, 0.0, 0.0, True),
        ("1%", -0.2, -0.1, 100.0, False),
    ],
)
def test_accuracy(limit: str | float, value: float, baseline: float, drop: float, holds: bool) -> None:
    judged = MaxDrop.parse(limit).judge(ACCURACY, value, baseline)
    assert judged.drop == pytest.approx(drop)
    assert judged.holds is holds


@pytest.mark.parametrize(("limit", "holds"), [("0.5", True), ("0.4", False), ("5%", True), ("4%", False)])
def test_a_higher_perplexity_is_a_drop(limit: str, holds: bool) -> None:
    assert MaxDrop.parse(limit).judge(PERPLEXITY, 10.5, 10.0).holds is holds


def test_a_figure_that_is_none_does_not_hold() -> None:
    judged = MaxDrop.parse("50%").judge(ACCURACY, math.nan, 0.9)
    assert not judged.holds
    assert judged.to_dict() == {
        "metric": "accuracy",
        "drop": None,
        "max_drop": 50.0,
        "unit": "percent of the baseline",
        "holds": False,
    }


@pytest.mark.parametrize("limit", ["", "a little", "-1", "-1%", "nan", "inf", "1%%"])
def test_what_is_no_limit(limit: str) -> None:
    with pytest.raises(ConfigError, match=r"must be a number of at least 0: 0.5 for half a point, 1% of the baseline"):
        MaxDrop.parse(limit)


@pytest.mark.parametrize(
    ("value", "baseline"), [(math.nan, 0.0), (-math.nan, 0.0), (0.9, math.nan), (math.inf, math.inf), (1.0, math.inf)]
)
@pytest.mark.parametrize("limit", ["50%", "1000"])
@pytest.mark.parametrize("metric", [ACCURACY, PERPLEXITY], ids=lambda metric: metric.name)
def test_a_figure_that_is_undefined_or_infinite_holds_no_limit(
    value: float, baseline: float, limit: str, metric: Metric
) -> None:
    judged = MaxDrop.parse(limit).judge(metric, value, baseline)
    assert not judged.holds
    assert judged.describe("a", "b").startswith(f"{metric.name} is undefined for a or b on these examples")


def test_a_drop_is_described_with_its_unit() -> None:
    said = MaxDrop.parse("1%").judge(ACCURACY, 0.45, 0.9).describe("a", "b")
    assert said == "a: accuracy is 50.00 % below that of b, at most 1% is accepted"
