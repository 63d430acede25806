"""Find out whether the values of a file are those of torch times a wrong scale.

In half precision a single value may be off by several steps, which hides a scale that is wrong by a few percent. But
noise has no direction: over all values of a tensor it does not change their root mean square.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["TOLERANCE", "ScaleRatio"]

TOLERANCE = 0.015
"""How far the ratio may be from 1, in addition to five standard deviations of the effect of noise."""


class ScaleRatio:
    """Measure the ratio between the values of a file and those of torch, both in steps, over all batches."""

    def __init__(self) -> None:
        self._expected = self._found = self._noise = 0.0

    def add(self, expected: np.ndarray, found: np.ndarray) -> None:
        """Add the values of one batch; both arrays have the same shape."""
        expected, found = expected.astype(np.float64), found.astype(np.float64)
        larger = np.maximum(np.abs(expected), np.abs(found))
        self._expected += float(np.square(expected).sum())
        self._found += float(np.square(found).sum())
        # A difference d of a value x changes the sum of squares by about 2 d x, in either direction.
        self._noise += float(np.square((found - expected) * larger).sum())

    @property
    def ratio(self) -> float:
        """Root mean square of the file over that of torch; 1 if all values are 0."""
        return math.sqrt(self._found / self._expected) if self._expected else 1.0

    @property
    def is_within_tolerance(self) -> bool:
        """Whether rounding can explain the ratio."""
        if not self._expected:
            return True
        deviation = math.sqrt(self._noise) / self._expected
        return abs(self.ratio - 1) <= TOLERANCE + 5 * deviation
