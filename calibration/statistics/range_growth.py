"""How much a range still grew at the end of the data, which tells whether more data would change it."""

from __future__ import annotations

import math

__all__ = ["RangeGrowth"]

_BEFORE_LAST_TENTH = 0.9


class RangeGrowth:
    """A record of when the largest magnitude of a slot rose, as far as the last tenth of the data may need it.

    Attributes:
        rises: Pairs of the number of samples and the largest magnitude after them, ascending.
    """

    def __init__(self) -> None:
        self.rises: list[tuple[int, float]] = []

    def note(self, samples: int, amax: float) -> None:
        """Note that ``amax`` is the largest magnitude of the first ``samples`` samples."""
        if self.rises and not amax > self.rises[-1][1]:
            return
        self.rises.append((samples, amax))
        # However many samples follow, rises before 90 % of those so far stay before the last tenth. Only the last of
        # them is needed, which bounds the memory.
        past = sum(at <= _BEFORE_LAST_TENTH * samples for at, _ in self.rises)
        del self.rises[: max(past - 1, 0)]

    def merge(self, rises: list[tuple[int, float]]) -> None:
        """Add the ``rises`` of a process that saw other batches of the same data."""
        everything = sorted([*self.rises, *rises])
        self.rises = []
        for samples, amax in everything:
            self.note(samples, amax)

    def at_the_end(self, samples: int) -> float:
        """Return by how much the range grew in the last tenth of ``samples`` samples: 0.02 is 2 %.

        Return 0.0 if that is not known.
        """
        before = [amax for at, amax in self.rises if at <= _BEFORE_LAST_TENTH * samples]
        if not before or not before[-1] > 0 or not math.isfinite(self.rises[-1][1]):
            return 0.0
        return self.rises[-1][1] / before[-1] - 1
