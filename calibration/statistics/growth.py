"""Whether a range has come to rest: how much it still grew at the end of the data."""

from __future__ import annotations

import math

__all__ = ["Growth"]

_LAST = 0.9


class Growth:
    """When the largest magnitude of a slot rose, as far as the last tenth of the data may need it."""

    def __init__(self) -> None:
        self.rises: list[tuple[int, float]] = []

    def note(self, samples: int, amax: float) -> None:
        """``amax`` is the largest magnitude of the first ``samples`` samples."""
        if self.rises and not amax > self.rises[-1][1]:
            return
        self.rises.append((samples, amax))
        # Whatever is yet to come, these stay before the last tenth, and only the last of them counts.
        past = sum(at <= _LAST * samples for at, _ in self.rises)
        del self.rises[: max(past - 1, 0)]

    def merge(self, rises: list[tuple[int, float]]) -> None:
        """Add the ``rises`` of one that saw other batches of the same data."""
        everything = sorted([*self.rises, *rises])
        self.rises = []
        for samples, amax in everything:
            self.note(samples, amax)

    def at_the_end(self, samples: int) -> float:
        """By how much the range grew in the last tenth of ``samples``: 0.02 is 2 %; 0.0 where nobody can tell."""
        before = [amax for at, amax in self.rises if at <= _LAST * samples]
        if not before or not before[-1] > 0 or not math.isfinite(self.rises[-1][1]):
            return 0.0
        return self.rises[-1][1] / before[-1] - 1
