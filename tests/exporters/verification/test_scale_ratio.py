from __future__ import annotations

import numpy as np
import pytest

from exporters.verification.scale_ratio import ScaleRatio


def integers(scale: float, *, noise: float = 0.0, seed: int = 0, size: int = 4000, width: float = 20.0) -> np.ndarray:
    """What a tensor with normal values rounds to."""
    values = width * np.random.default_rng(0).normal(size=size)
    values += noise * np.random.default_rng(seed).normal(size=size)
    return np.clip(np.rint(values / scale), -128, 127).astype(np.float32)


def scale_ratio(*pairs: tuple[np.ndarray, np.ndarray]) -> ScaleRatio:
    found = ScaleRatio()
    for expected, actual in pairs:
        found.add(expected, actual)
    return found


@pytest.mark.parametrize("width", [0.3, 2.0, 20.0, 40.0, 200.0])
@pytest.mark.parametrize("seed", range(1, 6))
def test_noise_of_steps_has_no_gain(width: float, seed: int) -> None:
    """Of one step or several, also where all values are small, and where many saturate."""
    for noise in (0.1, 0.5, 2.0):
        one = scale_ratio(
            (integers(1, noise=noise, seed=99, width=width), integers(1, noise=noise, seed=seed, width=width))
        )
        assert one.is_within_tolerance, (noise, one.ratio)


@pytest.mark.parametrize("factor", [1.05, 1 / 1.05, 1.5])
@pytest.mark.parametrize("noise", [0.0, 1.0])
def test_a_scale_that_is_off_by_5_percent_has_a_gain(factor: float, noise: float) -> None:
    one = scale_ratio((integers(1, noise=noise, seed=1), integers(factor, noise=noise, seed=2)))
    assert one.ratio == pytest.approx(1 / factor, rel=0.01)
    assert not one.is_within_tolerance


def test_batches_add_up() -> None:
    """A few values tell nothing, many do."""
    pairs = [(a, b) for a, b in zip(np.split(integers(1), 400), np.split(integers(1.05), 400), strict=True)]
    assert scale_ratio(pairs[0]).is_within_tolerance
    assert not scale_ratio(*pairs).is_within_tolerance


@pytest.mark.parametrize(
    ("expected", "found"),
    [([0, 0], [0, 0]), ([0, 1], [1, 1]), ([1, 1], [0, 1]), ([0, 0], [0, 3]), ([1], [2])],
    ids=["zeros", "one more", "one less", "out of nothing", "alone"],
)
def test_a_handful_of_flipped_steps_is_explained(expected: list[int], found: list[int]) -> None:
    assert scale_ratio((np.float32(expected), np.float32(found))).is_within_tolerance
