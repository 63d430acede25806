"""What makes ranges doubtful, in words and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["ENOUGH_SAMPLES", "ENOUGH_TOKENS", "clipped", "growing_ranges", "idle_in_float8", "too_little_data"]

ENOUGH_SAMPLES = 32
ENOUGH_TOKENS = 512

_GROWS = 0.02  # less than that moves no scale that anybody would notice
_MANY = 0.25
_MUCH = 0.01


def too_little_data(samples: int, tokens: int) -> list[str]:
    """A warning when there is less text than ranges need to mean anything."""
    if samples >= ENOUGH_SAMPLES and tokens >= ENOUGH_TOKENS:
        return []
    return [
        f"little data: {samples} samples with {tokens} tokens, where {ENOUGH_SAMPLES} and {ENOUGH_TOKENS} are the "
        "least that ranges can be trusted with; give more text"
    ]


def growing_ranges(growth: Mapping[str, float]) -> list[str]:
    """A warning when many ranges were still growing as the data ended.

    Args:
        growth: for each slot, by how much its largest magnitude rose in the last tenth of the samples; 0.02 is 2 %.
    """
    grown = {slot: rise for slot, rise in growth.items() if rise > _GROWS}
    if len(grown) < _MANY * len(growth):
        return []
    worst = max(grown, key=grown.__getitem__)
    return [
        f"ranges were still growing: those of {len(grown)} of {len(growth)} slots rose by more than {_GROWS:.0%} in "
        f"the last tenth of the samples (the most: {worst}, {grown[worst]:.0%}); give more text"
    ]


def clipped(saturated: Mapping[str, float], method: str) -> list[str]:
    """A line about slots that lose more than 1 % of their values to the range.

    Args:
        saturated: for each slot, the share of its values beyond the range.
        method: the name of the method that chose the ranges.
    """
    much = {slot: share for slot, share in saturated.items() if share > _MUCH}
    if not much:
        return []
    worst = max(much, key=much.__getitem__)
    return [
        f"{method} clips more than {_MUCH:.0%} of the values in {len(much)} slots (the most: {worst}, "
        f"{much[worst]:.1%}); compare with --calibrator max"
    ]


def idle_in_float8(what: str, slots: Sequence[str]) -> list[str]:
    """A line about what counts the steps of integers, and so does nothing for float8.

    Args:
        what: the option with its value.
        slots: that it is for and that are in float8.
    """
    if not slots:
        return []
    return [f"{what} is for integers and leaves {len(slots)} slots in float8 as they are ({slots[0]}, ...)"]
