"""The options that choose a recipe and change it, the same for every command that takes them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import nn

    from qdq.plan import Plan
    from qdq.refinement import Refinement

__all__ = [
    "BiasCorrectionOption",
    "ClippingOption",
    "DisableKeywordOption",
    "DisableLayerModuleOption",
    "DisableOption",
    "EnableLayerModuleOption",
    "ExcludeOption",
    "IncludeOption",
    "NoRefinementOption",
    "PerTensorOption",
    "RecipeChoice",
    "RefinementChoice",
    "RoundingOption",
    "ShiftOption",
    "SmoothingOption",
]

_PANEL = "Recipe"

IncludeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--include", metavar="GLOB", help="Quantize only modules that match; repeatable.", rich_help_panel=_PANEL
    ),
]
ExcludeOption = Annotated[
    list[str] | None,
    typer.Option(
        "--exclude", metavar="GLOB", help="Keep modules that match in float; repeatable.", rich_help_panel=_PANEL
    ),
]
PerTensorOption = Annotated[
    bool,
    typer.Option(
        "--quant-per-tensor", metavar="", help="One scale for each weight, not one a channel.", rich_help_panel=_PANEL
    ),
]
DisableOption = Annotated[
    bool,
    typer.Option(
        "--quant-disable",
        metavar="",
        help="Everything off, but for --quant-enable-layer-module.",
        rich_help_panel=_PANEL,
    ),
]
DisableKeywordOption = Annotated[
    list[str] | None,
    typer.Option(
        "--quant-disable-keyword",
        metavar="K",
        help="Off: slots whose name contains K (encoder.layers.0.attention.query.input_quantizer); repeatable.",
        rich_help_panel=_PANEL,
    ),
]
DisableLayerModuleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--quant-disable-layer-module",
        metavar="REGEX",
        help=r"Off: slots of every layer whose name below it begins like this (attention.\S+); repeatable.",
        rich_help_panel=_PANEL,
    ),
]
EnableLayerModuleOption = Annotated[
    list[str] | None,
    typer.Option(
        "--quant-enable-layer-module",
        metavar="REGEX",
        help="On again after the options above: named likewise, with the recipe's spec; repeatable.",
        rich_help_panel=_PANEL,
    ),
]

_REFINING = "Accuracy (instead of what the recipe says)"

SmoothingOption = Annotated[
    str | None,
    typer.Option(
        "--smoothing",
        metavar="0..1|off",
        help="How much of the difference between channels moves from activations to weights; 0.9 is usual.",
        rich_help_panel=_REFINING,
    ),
]
ShiftOption = Annotated[
    bool | None,
    typer.Option("--shift/--no-shift", help="Centre the channels of LayerNorm outputs.", rich_help_panel=_REFINING),
]
BiasCorrectionOption = Annotated[
    bool | None,
    typer.Option(
        "--bias-correction/--no-bias-correction",
        help="Make good the mean error of every linear layer.",
        rich_help_panel=_REFINING,
    ),
]
RoundingOption = Annotated[
    str | None,
    typer.Option(
        "--rounding",
        metavar="nearest|gptq",
        help="Of weights; gptq: errors of one column make up for those of others.",
        rich_help_panel=_REFINING,
    ),
]
ClippingOption = Annotated[
    str | None,
    typer.Option(
        "--clipping",
        metavar="none|token-wise",
        help="Of what linear layers read; token-wise: at the extremes of the share of tokens that costs least.",
        rich_help_panel=_REFINING,
    ),
]
NoRefinementOption = Annotated[
    bool,
    typer.Option(
        "--no-refinement",
        metavar="",
        help="Ranges alone, but for what other options of this group ask for.",
        rich_help_panel=_REFINING,
    ),
]


@dataclass(frozen=True, kw_only=True)
class RefinementChoice:
    """What the options about accuracy say; None: as the recipe has it."""

    smoothing: str | None = None
    shift: bool | None = None
    bias_correction: bool | None = None
    rounding: str | None = None
    clipping: str | None = None
    none: bool = False

    def applied(self, refinement: Refinement) -> Refinement:
        """The recipe's refinement with these changes.

        Raises:
            RecipeError: for values that cannot be, all of them at once.
        """
        from qdq.refinement import Refinement

        given = {name: getattr(self, name) for name in ("shift", "bias_correction", "clipping", "rounding")}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.smoothing is not None:
            changes["smoothing"] = None if self.smoothing == "off" else _number(self.smoothing)
        return replace(Refinement() if self.none else refinement, **changes)


def _number(text: str) -> float | str:
    """What cannot be read goes on as it is, to be refused together with other faults."""
    try:
        return float(text)
    except ValueError:
        return text


@dataclass(frozen=True, kw_only=True)
class RecipeChoice:
    """What these options say."""

    recipe: str
    include: list[str] | None = None
    exclude: list[str] | None = None
    per_tensor: bool = False
    disable: bool = False
    disable_keyword: list[str] | None = None
    disable_layer_module: list[str] | None = None
    enable_layer_module: list[str] | None = None
    refinement: RefinementChoice = RefinementChoice()

    def plan(self, model: nn.Module) -> Plan:
        """The recipe with all changes, and what it means for a wrapped model.

        Raises:
            RecipeError: for mistakes in the recipe, and names that this model does not have.
        """
        from qdq.plan import plan
        from qdq.prepare import slots
        from qdq.recipe import load_recipe
        from qdq.recipe_edits import per_tensor_weights, switch_slots

        chosen = load_recipe(self.recipe).restrict(include=self.include or [], exclude=self.exclude or [])
        chosen = replace(chosen, refinement=self.refinement.applied(chosen.refinement))
        chosen = per_tensor_weights(chosen) if self.per_tensor else chosen
        chosen = switch_slots(
            chosen,
            slots(model),
            disable=self.disable,
            disable_keywords=self.disable_keyword or [],
            disable_layer_modules=self.disable_layer_module or [],
            enable_layer_modules=self.enable_layer_module or [],
        )
        return plan(model, chosen)

    @property
    def changes(self) -> bool:
        """Whether anything but the recipe is given."""
        given = (self.include, self.exclude, self.disable_keyword, self.disable_layer_module, self.enable_layer_module)
        return self.per_tensor or self.disable or any(given)
