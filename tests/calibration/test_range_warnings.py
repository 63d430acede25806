"""Warnings about ranges: when they are given, and that their figures are right."""

from __future__ import annotations

import pytest

from calibration.range_warnings import growth_warnings, sample_size_warnings, saturation_warnings


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
