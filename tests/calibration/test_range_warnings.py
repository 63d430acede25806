"""Warnings: when they come, and that their figures are right."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.range_warnings import growth_warnings, sample_size_warnings, saturation_warnings
from calibration.statistics.range_growth import RangeGrowth


def grown(magnitudes: list[float], *, step: int = 1) -> float:
    """The growth after samples that come ``step`` at a time, with these largest magnitudes so far."""
    growth = RangeGrowth()
    for index, amax in enumerate(magnitudes, 1):
        growth.note(index * step, amax)
    return growth.at_the_end(len(magnitudes) * step)


@pytest.mark.parametrize("step", [1, 8])
@pytest.mark.parametrize("count", [10, 37, 500])
def test_growth_is_that_of_the_last_tenth(count: int, step: int) -> None:
    generator = np.random.default_rng(count)
    for spread in (0.1, 1.0, 3.0):
        so_far = np.maximum.accumulate(np.exp(spread * generator.standard_normal(count)))
        before = so_far[int(np.floor(0.9 * count + 1e-9)) - 1]
        assert grown(so_far.tolist(), step=step) == pytest.approx(so_far[-1] / before - 1)


@pytest.mark.parametrize(
    ("magnitudes", "why"),
    [
        pytest.param([], "no data", id="nothing"),
        pytest.param([5.0], "one batch has no before", id="one"),
        pytest.param([0.0] * 10, "zeros", id="zeros"),
        pytest.param([-float("inf")] * 10, "a slot that sees nothing", id="unseen"),
        pytest.param([1.0] * 9 + [float("inf")], "told elsewhere", id="infinite"),
    ],
)
def test_no_growth_where_nobody_can_tell(magnitudes: list[float], why: str) -> None:
    assert grown(magnitudes) == 0.0, why


def test_growth_remembers_little() -> None:
    growth = RangeGrowth()
    for index in range(1, 5000):
        growth.note(index, float(index) ** 0.01)
    assert len(growth.rises) <= 502


@pytest.mark.parametrize("count", [2, 3])
def test_growth_in_several_processes_is_that_in_one(count: int) -> None:
    generator = np.random.default_rng(count)
    for _ in range(50):
        magnitudes = np.exp(generator.standard_normal(40)).tolist()
        parts = [RangeGrowth() for _ in range(count)]
        highest = [0.0] * count
        for index, amax in enumerate(magnitudes):
            highest[index % count] = max(highest[index % count], amax)
            parts[index % count].note(index + 1, highest[index % count])
        for other in parts[1:]:
            parts[0].merge(other.rises)
        assert parts[0].at_the_end(40) == grown(np.maximum.accumulate(magnitudes).tolist())


@pytest.mark.parametrize(("samples", "tokens", "told"), [(32, 512, 0), (31, 9999, 1), (99, 511, 1), (0, 0, 1)])
def test_little_data_is_told(samples: int, tokens: int, told: int) -> None:
    lines = sample_size_warnings(samples, tokens)
    assert len(lines) == told
    assert all(f"{samples} samples with {tokens} tokens" in line for line in lines)


def test_ranges_that_grow_are_told() -> None:
    slots = {f"slot{n}": 0.0 for n in range(10)}
    assert growth_warnings({**slots, "slot1": 0.5, "slot2": 0.5}) == []
    assert growth_warnings({**slots, "slot1": 0.019, "slot2": 0.019, "slot3": 0.019}) == []
    (line,) = growth_warnings({**slots, "slot1": 0.03, "slot2": 0.4, "slot3": 0.1})
    assert "3 of 10 slots rose by more than 2%" in line
    assert "slot2, 40%" in line


def test_values_that_are_clipped_are_told() -> None:
    assert saturation_warnings({}, "mse") == []
    assert saturation_warnings({"a": 0.01, "b": 0.0001}, "mse") == []
    (line,) = saturation_warnings({"a": 0.02, "b": 0.125, "c": 0.001}, "mse")
    assert "mse clips more than 1% of the values in 2 slots (the most: b, 12.5%)" in line
