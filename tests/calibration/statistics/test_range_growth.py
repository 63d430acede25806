"""The growth of ranges in the last tenth of the data, in one process and in several."""

from __future__ import annotations

import numpy as np
import pytest

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
        pytest.param([5.0], "there is nothing before the only batch", id="one"),
        pytest.param([0.0] * 10, "zeros", id="zeros"),
        pytest.param([-float("inf")] * 10, "a slot that sees nothing", id="unseen"),
        pytest.param([1.0] * 9 + [float("inf")], "reported elsewhere", id="infinite"),
    ],
)
def test_no_growth_where_it_is_unknown(magnitudes: list[float], why: str) -> None:
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
