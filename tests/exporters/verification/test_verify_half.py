"""What half precision may differ by, against differences that are made on purpose."""

from __future__ import annotations

import numpy as np
import pytest

from exporters.verification.recording import RecordedTensor
from exporters.verification.verify import Bounds, cosine, sqnr_db

ROUNDING = 8 * 2.0**-11


@pytest.mark.parametrize("float_sqnr", [6.0, 9.0, 11.3])
def test_two_models_with_noise_of_their_own_are_as_far_apart_as_allowed(float_sqnr: float) -> None:
    """Each as far from the float model as the other."""
    random = np.random.default_rng(0)
    exact = random.normal(size=(200, 384))
    size = 10 ** (-float_sqnr / 20)
    one, other = (exact + size * random.normal(size=exact.shape) for _ in range(2))
    sqnr, least = Bounds(independent=True).least(sqnr_db(exact, one))
    # The reference of the comparison has noise of its own, which counts as signal there.
    assert sqnr <= sqnr_db(one, other) <= sqnr + 1.5
    assert cosine(one, other) == pytest.approx(least, abs=0.01)


def test_noise_of_twice_the_size_is_refused() -> None:
    random = np.random.default_rng(0)
    exact = random.normal(size=(200, 384))
    one = exact + 0.27 * random.normal(size=exact.shape)
    other = exact + 0.54 * random.normal(size=exact.shape)
    sqnr, least = Bounds(independent=True).least(sqnr_db(exact, one))
    assert sqnr_db(one, other) < sqnr
    assert cosine(one, other) < least


@pytest.mark.parametrize("bounds", [Bounds(), Bounds(independent=True)], ids=["float32", "half"])
def test_close_to_float_the_bounds_are_what_they_are(bounds: Bounds) -> None:
    assert bounds.least(30.0) == (bounds.sqnr_db, bounds.cosine)
    assert bounds.least(float("nan")) == (bounds.sqnr_db, bounds.cosine)


def test_float32_allows_no_noise_of_its_own() -> None:
    assert Bounds().least(9.0) == (10.0, 0.95)


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    found: np.ndarray = e / e.sum(-1, keepdims=True)
    return found


def record(p: np.ndarray, score: float) -> RecordedTensor:
    steps = p * 127
    return RecordedTensor.of(steps, np.rint(steps), np.float32(1 / 127), np.int32(0), score=score)


def test_a_softmax_passes_on_what_large_scores_were_rounded_by() -> None:
    """Scores around 30 have steps of 1/64 in float16, of which probabilities near a half make whole steps."""
    random = np.random.default_rng(0)
    scores = random.normal(size=(4000, 8)) + random.choice([0.0, 30.0], size=(4000, 8))
    noisy = scores + (random.integers(-2, 3, size=scores.shape) * 2.0**-6) * (scores > 16)
    theirs = np.rint(softmax(noisy) * 127)
    one = record(softmax(scores), score=float(scores.max()))
    assert np.abs(theirs - one.integers).max() >= 2
    assert one.matches(theirs, ROUNDING).all()
    assert not record(softmax(scores), score=0.0).matches(theirs, ROUNDING).all()


@pytest.mark.parametrize("factor", [0.8, 1.3])
def test_a_softmax_of_scores_on_a_wrong_scale_is_found(factor: float) -> None:
    random = np.random.default_rng(0)
    scores = random.normal(size=(400, 8)) * 4
    theirs = np.rint(softmax(scores * factor) * 127)
    one = record(softmax(scores), score=float(np.abs(scores).max()))
    assert (~one.matches(theirs, ROUNDING)).mean() > 0.05


def test_in_float32_scores_do_not_matter() -> None:
    p = softmax(np.random.default_rng(0).normal(size=(40, 8)))
    theirs = np.rint(p * 127) + 1
    matches = record(p, score=30.0).matches(theirs, 0.0)
    np.testing.assert_array_equal(matches, record(p, score=0.0).matches(theirs, 0.0))
