"""Warnings about ranges that may not be trusted, in words and figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from calibration.clipping_harm import Harm

__all__ = [
    "MIN_SAMPLES",
    "MIN_TOKENS",
    "float8_warnings",
    "growth_warnings",
    "harm_warnings",
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


def harm_warnings(harm: Harm | None, method: str) -> list[str]:
    """Return a warning if the outputs of the calibrated model are far from those of the float model.

    Args:
        harm: The comparison; None if there was none.
        method: The name of the method that chose the ranges.
    """
    if harm is None or not harm.is_notable:
        return []
    found = f"on {harm.samples} samples the outputs have a mean cosine of {harm.final.cosine:.3f} to the float model's"
    if not harm.is_of_clipping or harm.whole is None:
        return [
            f"{found} (SQNR {harm.final.sqnr_db:.0f} dB): find the slots that cost most with qdq analyze and keep them "
            "in float with --exclude, or give a recipe with smoothing and shift (--smoothing 0.9 --shift)"
        ]
    cures = ["--calibrator max"]
    if harm.is_of_refinement:
        cures.append("--no-bias-correction, as the correction takes what is clipped for an error of all tokens")
    return [
        f"{method} clips values that matter, most of all in {', '.join(harm.lost)}: {found}, and one of "
        f"{harm.whole.cosine:.3f} with ranges that clip nothing; give {', or '.join(cures)}"
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
