"""The refinements of a recipe: what calibration does besides finding ranges, so that int8 comes closer to float."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qdq.errors import RecipeError
from qdq.settings import check, choice, documented, flag, number, problems_in, setting, settings_of

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["CLIPPINGS", "ROUNDINGS", "Refinement"]

ROUNDINGS = ("nearest", "gptq")
CLIPPINGS = ("none", "token-wise")


@documented
@dataclass(frozen=True, kw_only=True)
class Refinement:
    """The refinements that a recipe asks for; by default none.

    How they work is described in :mod:`calibration.refinement.smoothing` (``shift`` and ``smoothing``),
    :mod:`calibration.refinement.layerwise` (``bias_correction``), :mod:`calibration.refinement.token_clipping` and
    :mod:`calibration.refinement.gptq`.

    Raises:
        RecipeError: Values break their rules; all of them are named.
    """

    shift: bool = setting(False, "Center each channel of LayerNorm outputs around zero (Outlier Suppression+).", flag())
    smoothing: float | None = setting(
        None,
        "Smoothing strength (alpha of SmoothQuant) from 0 to 1: how much of the difference between channels to move "
        "from "
        "activations to weights; null disables smoothing.",
        number(0, 1).or_none(),
    )
    bias_correction: bool = setting(
        False, "Subtract the mean quantization error of each linear layer from its bias.", flag()
    )
    clipping: str = setting(
        "none",
        "Clipping of the inputs of linear layers: none, or token-wise (Outlier Suppression), which clips the tokens "
        "with "
        "the most extreme values, as many as give the least error.",
        choice(*CLIPPINGS),
    )
    rounding: str = setting(
        "nearest",
        "Rounding of weights: nearest, or gptq, which chooses it so that the rounding errors of a row cancel out.",
        choice(*ROUNDINGS),
    )

    def __post_init__(self) -> None:
        check(self, "refinement", error=RecipeError)

    def __bool__(self) -> bool:
        return self != Refinement()

    @property
    def has_transforms(self) -> bool:
        """Whether activations are shifted or smoothed, which happens before ranges are found."""
        return self.shift or self.smoothing is not None

    @property
    def is_layerwise(self) -> bool:
        """Whether layers are refined one after another, which happens after ranges were found."""
        return self.bias_correction or self.rounding != "nearest" or self.clipping != "none"

    @classmethod
    def problems_in(cls, values: Mapping[str, Any]) -> list[str]:
        """Return what is wrong with plain values, one line each that begins with the setting."""
        return problems_in(cls, values)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings that differ from their defaults, as plain values."""
        defaults = {name: default for name, default, _ in settings_of(Refinement)}
        return {name: value for name, value in asdict(self).items() if value != defaults[name]}
