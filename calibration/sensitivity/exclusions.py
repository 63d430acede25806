"""What to switch off first: the fewest groups of slots without which the model is as close to float as asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from calibration.sensitivity.groups import Group
    from calibration.sensitivity.similarity import Similarity

__all__ = ["Step", "Target", "switch_off"]

_AT_ONCE = 4  # candidates measured in one pass over the data


@dataclass(frozen=True)
class Target:
    """How close to the float model is close enough; what is None is not asked for.

    Args:
        cosine: least mean cosine, below 1.
        sqnr_db: least SQNR.

    Raises:
        ConfigError: when nothing is asked for, or a cosine that is not between 0 and 1.
    """

    cosine: float | None = None
    sqnr_db: float | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.cosine is not None and not 0 < self.cosine < 1:
            problems.append(f"a cosine of {self.cosine} cannot be aimed at: it must be above 0 and below 1")
        if self.sqnr_db is not None and not 0 < self.sqnr_db < 100:
            problems.append(f"an SQNR of {self.sqnr_db} dB cannot be aimed at: it must be above 0 and below 100")
        if self.cosine is None and self.sqnr_db is None:
            problems.append("it asks for nothing: give a cosine or an SQNR")
        if problems:
            raise ConfigError(describe_problems("target", problems))

    def excess(self, found: Similarity) -> float:
        """The error as a multiple of what is accepted, the larger one where two are asked for; 1 and less is enough."""
        excess = []
        if self.cosine is not None:
            excess.append((1 - found.cosine) / (1 - self.cosine))
        if self.sqnr_db is not None:
            excess.append(10 ** ((self.sqnr_db - found.sqnr_db) / 10))
        return max(excess)

    def to_dict(self) -> dict[str, float]:
        """What is asked for."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class Step:
    """A state of the search.

    Args:
        off: groups that are switched off, in the order in which they were chosen.
        similarity: of the model without them, measured.
        reached: whether that is enough.
    """

    off: tuple[Group, ...]
    similarity: Similarity
    reached: bool

    @property
    def exclude(self) -> tuple[str, ...]:
        """The patterns for ``--exclude``."""
        return tuple(dict.fromkeys(pattern for group in self.off for pattern in group.exclude))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"off": [group.name for group in self.off], "reached": self.reached, **self.similarity.to_dict()}


def switch_off(
    measure: Callable[[Sequence[Sequence[Group]]], Sequence[Similarity]],
    without: Mapping[Group, Similarity],
    quantized: Similarity,
    target: Target,
) -> Iterator[Step]:
    """Switch off one group after another, always the one that helps most, until ``target`` is reached.

    Every state is measured, none predicted. Of the candidates only those are measured anew that promised most when they
    last were. In the end those that turn out to be dispensable are switched on again.

    Args:
        measure: how close the model is without these groups, for several such choices.
        without: all candidates, and how close the model is without each.
        quantized: how close it is with all of them on.
        target: when to stop.

    Yields:
        The state after each step, beginning with nothing off; the last one is the result.
    """
    off: tuple[Group, ...] = ()
    state = quantized
    gains = {group: target.excess(quantized) - target.excess(found) for group, found in without.items()}
    known = {group: (off, found) for group, found in without.items()}  # for which state a gain was measured
    yield Step(off, state, target.excess(state) <= 1)
    while target.excess(state) > 1 and gains:
        best = sorted(gains, key=lambda group: -gains[group])[:_AT_ONCE]
        stale = [group for group in best if known[group][0] != off]
        for group, found in zip(stale, measure([(*off, group) for group in stale]) if stale else (), strict=True):
            gains[group], known[group] = target.excess(state) - target.excess(found), (off, found)
        winner = max(best, key=lambda group: gains[group])
        state = known[winner][1]
        off = (*off, winner)
        del gains[winner]
        yield Step(off, state, target.excess(state) <= 1)
    if target.excess(state) > 1:
        return
    for group in off[:-1]:  # without the last one it was not enough
        fewer = tuple(other for other in off if other is not group)
        (found,) = measure([fewer])
        if target.excess(found) <= 1:
            off, state = fewer, found
            yield Step(off, state, reached=True)
