"""Warnings about ranges that may not be trusted, in words and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = [
    "MIN_SAMPLES",
    "MIN_TOKENS",
    "float8_warnings",
    "growth_warnings",
    "sample_size_warnings",
    "saturation_warnings",
]

MIN_SAMPLES = 32
MIN_TOKENS = 512

_GROWTH = 0.02  # a smaller growth changes no scale noticeably
_SHARE_OF_SLOTS = 0.25
_SATURATION = 0.01


def sample_size_warnings(samples: int, tokens: int) -> list[str]:
    """Return a warning if there is less text than ranges need to be trusted."""
    if samples >= MIN_SAMPLES and tokens >= MIN_TOKENS:
        return []
    return [
        f"little data: {samples} samples with {tokens} tokens; give at least {MIN_SAMPLES} samples and {MIN_TOKENS} "
        "tokens for ranges that can be trusted"
    ]


def growth_warnings(growth: Mapping[str, float]) -> list[str]:
    """Return a warning if many ranges were still growing at the end of the data.

    Args:
        growth: For each slot, by how much its largest magnitude rose in the last tenth of the samples; 0.02 is 2 %.
    """
    grown = {slot: rise for slot, rise in growth.items() if rise > _GROWTH}
    if len(grown) < _SHARE_OF_SLOTS * len(growth):
        return []
    worst = max(grown, key=grown.__getitem__)
    return [
        f"ranges were still growing: those of {len(grown)} of {len(growth)} slots rose by more than {_GROWTH:.0%} in "
        f"the last tenth of the samples (the most: {worst}, {grown[worst]:.0%}); give more text"
    ]


def saturation_warnings(saturated: Mapping[str, float], method: str) -> list[str]:
    """Return a warning if slots lose more than 1 % of their values to the range.

    Args:
        saturated: For each slot, the share of its values beyond the range.
        method: The name of the method that chose the ranges.
    """
    many = {slot: share for slot, share in saturated.items() if share > _SATURATION}
    if not many:
        return []
    worst = max(many, key=many.__getitem__)
    return [
        f"{method} clips more than {_SATURATION:.0%} of the values in {len(many)} slots (the most: {worst}, "
        f"{many[worst]:.1%}); compare with --calibrator max"
    ]


def float8_warnings(setting: str, slots: Sequence[str]) -> list[str]:
    """Return a warning if a setting that works on integers is used for slots in float8.

    Args:
        setting: The setting with its value.
        slots: The slots in float8 that it would be for.
    """
    if not slots:
        return []
    return [f"{setting} is for integers and does not change {len(slots)} slots in float8 ({slots[0]}, ...)"]
