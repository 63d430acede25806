"""Find the fewest groups of slots to leave in float so that the model is as similar to the float model as required."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from calibration.sensitivity.groups import Group
    from calibration.sensitivity.similarity import Similarity

__all__ = ["SearchStep", "SimilarityTarget", "find_exclusions"]

_CANDIDATES = 4  # measured in one pass over the data


@dataclass(frozen=True)
class SimilarityTarget:
    """How similar to the float model the quantized model must be.

    Args:
        cosine: The least mean cosine, above 0 and below 1; None for any.
        sqnr_db: The least SQNR in decibels; None for any.

    Raises:
        ConfigError: Neither is given, or one is out of range.
    """

    cosine: float | None = None
    sqnr_db: float | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.cosine is not None and not 0 < self.cosine < 1:
            problems.append(f"the cosine is {self.cosine}, but must be above 0 and below 1")
        if self.sqnr_db is not None and not 0 < self.sqnr_db < 100:
            problems.append(f"the SQNR is {self.sqnr_db} dB, but must be above 0 and below 100")
        if self.cosine is None and self.sqnr_db is None:
            problems.append("nothing is given; give a cosine or an SQNR")
        if problems:
            raise ConfigError(describe_problems("similarity target", problems))

    def relative_error(self, found: Similarity) -> float:
        """Return the error as a multiple of the error that is accepted; 1 or less reaches the target.

        If both a cosine and an SQNR are given, the larger multiple counts.
        """
        errors = []
        if self.cosine is not None:
            errors.append((1 - found.cosine) / (1 - self.cosine))
        if self.sqnr_db is not None:
            errors.append(10 ** ((self.sqnr_db - found.sqnr_db) / 10))
        return max(errors)

    def to_dict(self) -> dict[str, float]:
        """Return what is given, for JSON."""
        return {name: value for name, value in vars(self).items() if value is not None}


@dataclass(frozen=True)
class SearchStep:
    """One step of the search.

    Args:
        excluded: The groups that are left in float, in the order in which they were chosen.
        similarity: The measured similarity of the model with these groups in float.
        reached: Whether that reaches the target.
    """

    excluded: tuple[Group, ...]
    similarity: Similarity
    reached: bool

    @property
    def exclude(self) -> tuple[str, ...]:
        """The patterns for ``--exclude``."""
        return tuple(dict.fromkeys(pattern for group in self.excluded for pattern in group.exclude))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {"off": [group.name for group in self.excluded], "reached": self.reached, **self.similarity.to_dict()}


def find_exclusions(
    measure: Callable[[Sequence[Sequence[Group]]], Sequence[Similarity]],
    without: Mapping[Group, Similarity],
    quantized: Similarity,
    target: SimilarityTarget,
) -> Iterator[SearchStep]:
    """Leave one group after another in float, always the one that improves the model most, until ``target`` is reached.

    Every step is measured, none is predicted. To save time, only the candidates with the largest improvements so far
    are measured again in each step. At the end, groups that turn out not to be needed are quantized again.

    Args:
        measure: Returns the similarity of the model with these groups in float, for several such choices.
        without: All candidates, with the similarity of the model without each of them.
        quantized: The similarity of the model with all groups quantized.
        target: When to stop.

    Yields:
        Each step, from the one that excludes nothing to the result.
    """
    excluded: tuple[Group, ...] = ()
    current = quantized
    improvements = {group: target.relative_error(quantized) - target.relative_error(s) for group, s in without.items()}
    # For each group, the exclusions that its improvement was measured with, and the similarity that was measured.
    measured = {group: (excluded, found) for group, found in without.items()}
    yield SearchStep(excluded, current, target.relative_error(current) <= 1)
    while target.relative_error(current) > 1 and improvements:
        best = sorted(improvements, key=lambda group: -improvements[group])[:_CANDIDATES]
        stale = [group for group in best if measured[group][0] != excluded]
        results = measure([(*excluded, group) for group in stale]) if stale else ()
        for group, found in zip(stale, results, strict=True):
            improvements[group] = target.relative_error(current) - target.relative_error(found)
            measured[group] = (excluded, found)
        winner = max(best, key=lambda group: improvements[group])
        current = measured[winner][1]
        excluded = (*excluded, winner)
        del improvements[winner]
        yield SearchStep(excluded, current, target.relative_error(current) <= 1)
    if target.relative_error(current) > 1:
        return
    for group in excluded[:-1]:  # The last group is needed: before it, the target was not reached.
        fewer = tuple(other for other in excluded if other is not group)
        (found,) = measure([fewer])
        if target.relative_error(found) <= 1:
            excluded, current = fewer, found
            yield SearchStep(excluded, current, reached=True)
