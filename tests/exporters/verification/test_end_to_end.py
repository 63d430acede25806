"""Outputs of few values: what chance does to them is allowed, and nothing beyond."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import polygamma

from exporters.verification.end_to_end import bound_problems, compare_outputs, sqnr_spread_db
from exporters.verification.report import Bounds, OutputComparison

LOGITS = np.float32([[2, -2], [-1.5, 1.5], [0.02, -0.02], [1, -1], [2.5, -2], [-3, 3], [1.1, -0.9], [-2, 2.2]])
BATCH = {"input_ids": np.zeros((8, 4), np.int64), "attention_mask": np.ones((8, 4), np.int64)}


def row(actual: np.ndarray, expected: np.ndarray, in_float: np.ndarray = LOGITS) -> OutputComparison:
    (found,) = compare_outputs({"logits": in_float}, {"logits": expected}, {"logits": actual}, BATCH)
    return found


@pytest.mark.parametrize("errors", [20, 100, 5000])
def test_three_deviations_of_a_difference_of_levels(errors: int) -> None:
    """The logarithm of a chi-squared number with n degrees of freedom has the variance trigamma(n / 2)."""
    deviation = 10 / math.log(10) * math.sqrt(2 * polygamma(1, errors / 2))
    assert sqnr_spread_db(errors) == pytest.approx(3 * deviation, rel=0.03)


def test_a_text_at_the_boundary_may_turn_around() -> None:
    noise = np.float32([1, -1]) * 0.05
    found = row(LOGITS - noise, LOGITS + noise)
    assert found.cosine > 0.99
    assert found.sqnr_spread_db == sqnr_spread_db(8)
    assert bound_problems(found, Bounds(), "onnxruntime") == []


def test_other_logits_are_found() -> None:
    noise = np.float32([1, -1]) * 0.02
    problems = bound_problems(row(LOGITS[::-1], LOGITS + noise), Bounds(), "onnxruntime")
    assert len(problems) == 2
    assert "dB and cosine" in problems[0]
    assert "to the float model" in problems[1]


def test_wide_vectors_are_compared_each_with_its_own_direction() -> None:
    random = np.random.default_rng(0)
    x = random.normal(size=(8, 4, 64)).astype(np.float32)
    turned = x.copy()
    turned[0, 0] *= -1
    found = row(turned, x, x)
    assert found.sqnr_spread_db == 0
    assert found.cosine == pytest.approx(1 - 2 / 32, abs=1e-6)
