"""Data that numbers its labels in another order than the head."""

from __future__ import annotations

import numpy as np
import pytest

from qdq.data.labels import Labels
from qdq.tasks.label_order import LabelPairs

NLI = Labels(("contradiction", "entailment", "neutral"))


def order_notes(prediction: np.ndarray, label: np.ndarray) -> list[str]:
    pairs = LabelPairs(NLI)
    for half in (slice(None, None, 2), slice(1, None, 2)):
        pairs.add(prediction[half], label[half])
    return pairs.notes()


def test_another_order_that_fits_far_better_is_told() -> None:
    prediction = np.array([1, 2, 0] * 20, dtype=float)
    label = np.array([0, 1, 2] * 20, dtype=float)
    (note,) = order_notes(prediction, label)
    assert "accuracy of 0.0 % is no better than guessing" in note
    assert "(0 for 'entailment', 1 for 'neutral', 2 for 'contradiction'), it is 100.0 %" in note


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0], ids=["right", "half right", "at random"])
def test_models_that_are_right_or_weak_are_not(share: float) -> None:
    generator = np.random.default_rng(0)
    label = generator.integers(0, 3, 600).astype(float)
    guesses = generator.integers(0, 3, 600).astype(float)
    prediction = np.where(generator.random(600) < share, guesses, label)
    assert order_notes(prediction, label) == []


def test_few_examples_say_nothing() -> None:
    assert order_notes(np.array([1.0] * 5), np.array([0.0] * 5)) == []


def test_what_is_no_id_does_not_count() -> None:
    prediction, label = np.array([-1.0] * 50 + [1.0] * 5), np.array([0.0] * 55)
    assert order_notes(prediction, label) == []
