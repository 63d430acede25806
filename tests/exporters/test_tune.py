from __future__ import annotations

import math

import numpy as np
import pytest

from exporters.benchmark import Machine, Shape
from exporters.tune import TuningCandidate, TuningResult, choose, text_vectors, tune
from qdq.errors import CheckpointError, ConfigError, VerificationError

SLOW = TuningCandidate("slow", None, 0.02, 1.5, 0.999)
FAST = TuningCandidate("fast", "fast", 0.01, 3.0, 0.97)
REFUSED = TuningCandidate("dynamic", "dynamic", refused="it has no ranges")


@pytest.mark.parametrize(("least", "name"), [(0.9, "fast"), (0.97, "fast"), (0.98, "slow")])
def test_the_fastest_that_is_close_enough(least: float, name: str) -> None:
    assert choose([SLOW, REFUSED, FAST], least).name == name


def test_none_that_is_close_enough_names_them_all() -> None:
    lost = TuningCandidate("lost", "lost", 0.001, 9.0, math.nan)
    with pytest.raises(VerificationError, match=r"no recipe reaches a cosine of 0\.9999: 4 problems") as caught:
        choose([SLOW, FAST, REFUSED, lost], 0.9999)
    for words in ("slow: its cosine to the float model is 0.9990", "0.9700", "dynamic: it has no ranges", "lost: "):
        assert words in str(caught.value)


def test_what_is_chosen_says_what_to_export_with() -> None:
    machine = Machine("cpu", 2, ())
    tuning = TuningResult((SLOW, FAST), "fast", "why", Shape(1, 8), 2, 0.9, machine)
    assert tuning.recipe == "fast"
    document = tuning.to_dict()
    assert document["shape"] == {"batch_size": 1, "seq_len": 8}
    assert [row["name"] for row in document["rows"]] == ["slow", "fast"]


def test_padding_is_no_part_of_the_vector_of_a_text() -> None:
    mask = np.array([[1, 1, 0], [1, 0, 0]])
    hidden = np.arange(12, dtype=np.float32).reshape(2, 3, 2)
    np.testing.assert_array_equal(text_vectors(hidden, mask), [[1, 2], [6, 7]])
    np.testing.assert_array_equal(text_vectors(hidden[..., 0], mask), [[0, 2, 0], [6, 0, 0]])
    logits = np.array([[1, 2], [3, 4]], np.float32)
    np.testing.assert_array_equal(text_vectors(logits, mask), logits)
    assert text_vectors(np.zeros((2, 4, 5), np.float32), mask).shape == (2, 20)


def test_a_cosine_that_none_can_be_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"the least cosine is 1\.5, must be from -1 to 1"):
        tune("nowhere", min_cosine=1.5)
    with pytest.raises(CheckpointError):
        tune("nowhere")
