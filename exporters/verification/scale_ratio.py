"""Whether what a file finds is what torch finds times a factor.

In half precision a value alone may be off by several steps, and so hides a scale that is wrong by a few percent. Noise
has no direction, though: over all values of a tensor it leaves their root mean square as it is.
"""

from __future__ import annotations

import math

import numpy as np

__all__ = ["TOLERANCE", "ScaleRatio"]

TOLERANCE = 0.015
"""How far the root mean square may be off; beside this, five standard deviations of what noise would do to it."""


class ScaleRatio:
    """The ratio of what a file finds to what torch finds, both in steps, over all batches."""

    def __init__(self) -> None:
        self._expected = self._found = self._noise = 0.0

    def add(self, expected: np.ndarray, found: np.ndarray) -> None:
        """Add the values of one batch, of one shape."""
        expected, found = expected.astype(np.float64), found.astype(np.float64)
        larger = np.maximum(np.abs(expected), np.abs(found))
        self._expected += float(np.square(expected).sum())
        self._found += float(np.square(found).sum())
        # A difference d of a value x changes the sum of squares by about 2 d x, in either direction.
        self._noise += float(np.square((found - expected) * larger).sum())

    @property
    def ratio(self) -> float:
        """Of the root mean squares, file over torch; 1 where both find only zeros."""
        return math.sqrt(self._found / self._expected) if self._expected else 1.0

    @property
    def is_explained(self) -> bool:
        """Whether rounding may have made that ratio."""
        if not self._expected:
            return True
        deviation = math.sqrt(self._noise) / self._expected
        return abs(self.ratio - 1) <= TOLERANCE + 5 * deviation
