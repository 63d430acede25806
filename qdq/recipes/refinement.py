"""What is done beyond finding ranges so that int8 comes closer to float; a part of every recipe."""

from __future__ import annotations

import reprlib
from dataclasses import asdict, dataclass, fields
from typing import TYPE_CHECKING, Any

from qdq.errors import RecipeError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

__all__ = ["CLIPPINGS", "ROUNDINGS", "Refinement"]

ROUNDINGS = ("nearest", "gptq")
CLIPPINGS = ("none", "token-wise")


@dataclass(frozen=True, kw_only=True)
class Refinement:
    """Which refinements a recipe wants; the default is none. How each works stands where it is done.

    Args:
        shift: centre the channels of LayerNorm outputs (:mod:`calibration.refinement.smoothing`).
        smoothing: how much of the difference between channels moves from activations to weights: 0 to 1, None for none
            (:mod:`calibration.refinement.smoothing`).
        bias_correction: make good the mean error of every linear layer (:mod:`calibration.refinement.layerwise`).
        clipping: of what linear layers read: ``none``, or ``token-wise``
            (:mod:`calibration.refinement.token_clipping`).
        rounding: of weights: ``nearest``, or ``gptq``, chosen so that errors cancel
            (:mod:`calibration.refinement.gptq`).

    Raises:
        RecipeError: for values that cannot be, all of them at once.
    """

    shift: bool = False
    smoothing: float | None = None
    bias_correction: bool = False
    clipping: str = "none"
    rounding: str = "nearest"

    def __post_init__(self) -> None:
        if problems := self.problems_in(vars(self)):
            raise RecipeError(describe_problems("refinement", problems))

    def __bool__(self) -> bool:
        return self != Refinement()

    @property
    def has_transforms(self) -> bool:
        """Whether anything is done in front of quantizers, before ranges are found."""
        return self.shift or self.smoothing is not None

    @property
    def is_layerwise(self) -> bool:
        """Whether anything is done layer by layer, after ranges were found."""
        return self.bias_correction or self.rounding != "nearest" or self.clipping != "none"

    @classmethod
    def problems_in(cls, values: Mapping[str, Any]) -> list[str]:
        """What is wrong with plain values, a line each that begins with the setting."""
        problems = []
        for name, value in values.items():
            if name not in _RULES:
                problems.append(f"unknown key {name!r} (known: {', '.join(_RULES)})")
            elif not _RULES[name][0](value):
                problems.append(f"{name} is {reprlib.repr(value)}, must be {_RULES[name][1]}")
        return problems

    def to_dict(self) -> dict[str, Any]:
        """Plain values, those that differ from the default."""
        plain = Refinement.__dataclass_fields__
        return {name: value for name, value in asdict(self).items() if value != plain[name].default}


def _is_share(value: Any) -> bool:
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1)


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _is_clipping(value: Any) -> bool:
    return isinstance(value, str) and value in CLIPPINGS


def _is_rounding(value: Any) -> bool:
    return isinstance(value, str) and value in ROUNDINGS


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "shift": (_is_flag, "true or false"),
    "smoothing": (_is_share, "a number from 0 to 1, or null"),
    "bias_correction": (_is_flag, "true or false"),
    "clipping": (_is_clipping, f"one of {', '.join(CLIPPINGS)}"),
    "rounding": (_is_rounding, f"one of {', '.join(ROUNDINGS)}"),
}
assert set(_RULES) == {field.name for field in fields(Refinement)}
