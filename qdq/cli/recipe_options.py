"""Options that choose a recipe and change it, shared by several commands."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from torch import nn

    from qdq.recipes.plan import Plan
    from qdq.recipes.recipe import Recipe
    from qdq.recipes.refinement import Refinement
    from qdq.source import ModelDirectory

__all__ = ["AS_RECIPE_SAYS", "NO_CHANGES", "RecipeChanges", "RecipeChoice", "RefinementChoice"]

_PANEL = "Recipe"
_REFINING = "Accuracy (instead of what the recipe says)"


@dataclass(frozen=True, kw_only=True)
class RecipeChanges:
    """Options that change a recipe; see :func:`qdq.cli.option_groups.with_groups`."""

    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="GLOB",
            help="Quantize only modules whose names match. Repeatable.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude",
            metavar="GLOB",
            help="Keep modules whose names match in float. Repeatable.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    per_tensor: Annotated[
        bool,
        typer.Option(
            "--quant-per-tensor",
            metavar="",
            help="Use one scale for each weight tensor instead of one for each channel.",
            rich_help_panel=_PANEL,
        ),
    ] = False
    disable: Annotated[
        bool,
        typer.Option(
            "--quant-disable",
            metavar="",
            help="Quantize nothing except what --quant-enable-layer-module names.",
            rich_help_panel=_PANEL,
        ),
    ] = False
    disable_keyword: Annotated[
        list[str] | None,
        typer.Option(
            "--quant-disable-keyword",
            metavar="K",
            help="Keep slots in float whose names contain K, as in "
            "encoder.layers.0.attention.query.input_quantizer. Repeatable.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    disable_layer_module: Annotated[
        list[str] | None,
        typer.Option(
            "--quant-disable-layer-module",
            metavar="REGEX",
            help=r"Keep slots of every layer in float whose names, without that of the layer, match from the "
            r"beginning, as in attention.\S+. Repeatable.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    enable_layer_module: Annotated[
        list[str] | None,
        typer.Option(
            "--quant-enable-layer-module",
            metavar="REGEX",
            help="Quantize such slots again after the options above, with the spec of the recipe. Repeatable.",
            rich_help_panel=_PANEL,
        ),
    ] = None

    def __bool__(self) -> bool:
        """Return whether any option is given."""
        given = (self.include, self.exclude, self.disable_keyword, self.disable_layer_module, self.enable_layer_module)
        return self.per_tensor or self.disable or any(given)


@dataclass(frozen=True, kw_only=True)
class RefinementChoice:
    """Options that change the refinement of a recipe; None leaves a setting as the recipe has it."""

    smoothing: Annotated[
        str | None,
        typer.Option(
            "--smoothing",
            metavar="0..1|off",
            help="How much of the difference between channels moves from activations to weights; 0.9 is usual, "
            "off for none.",
            rich_help_panel=_REFINING,
        ),
    ] = None
    shift: Annotated[
        bool | None,
        typer.Option("--shift/--no-shift", help="Centre the channels of LayerNorm outputs.", rich_help_panel=_REFINING),
    ] = None
    bias_correction: Annotated[
        bool | None,
        typer.Option(
            "--bias-correction/--no-bias-correction",
            help="Correct the mean error of every linear layer in its bias.",
            rich_help_panel=_REFINING,
        ),
    ] = None
    clipping: Annotated[
        str | None,
        typer.Option(
            "--clipping",
            metavar="none|token-wise",
            help="How the inputs of linear layers are clipped; token-wise chooses the share of tokens whose extremes "
            "give the least error.",
            rich_help_panel=_REFINING,
        ),
    ] = None
    rounding: Annotated[
        str | None,
        typer.Option(
            "--rounding",
            metavar="nearest|gptq",
            help="How weights are rounded; gptq lets the errors of a row compensate for each other.",
            rich_help_panel=_REFINING,
        ),
    ] = None
    no_refinement: Annotated[
        bool,
        typer.Option(
            "--no-refinement",
            metavar="",
            help="Drop the refinement of the recipe, except for what other options of this panel ask for.",
            rich_help_panel=_REFINING,
        ),
    ] = False

    def applied(self, refinement: Refinement) -> Refinement:
        """Return the refinement of a recipe with these changes.

        Raises:
            RecipeError: Values break their rules; all of them are listed.
        """
        from qdq.recipes.refinement import Refinement

        given = {name: getattr(self, name) for name in ("shift", "bias_correction", "clipping", "rounding")}
        changes: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
        if self.smoothing is not None:
            changes["smoothing"] = None if self.smoothing == "off" else _number(self.smoothing)
        return replace(Refinement() if self.no_refinement else refinement, **changes)


def _number(text: str) -> float | str:
    """Return the number, or the text as it is where it is none: it is refused together with other problems."""
    try:
        return float(text)
    except ValueError:
        return text


NO_CHANGES = RecipeChanges()
AS_RECIPE_SAYS = RefinementChoice()


@dataclass(frozen=True, kw_only=True)
class RecipeChoice:
    """A recipe with all options that change it."""

    recipe: str
    changes: RecipeChanges = NO_CHANGES
    refinement: RefinementChoice = AS_RECIPE_SAYS

    def recipe_for(self, directory: ModelDirectory, task: str | None) -> Recipe:
        """Return the recipe with all changes, checked against the model of a directory. No weights are read.

        Raises:
            RecipeError: As :meth:`plan`.
        """
        from qdq.recipes.plan import skeleton

        return self.plan(skeleton(directory.config, task)).recipe

    def plan(self, model: nn.Module) -> Plan:
        """Return the recipe with all changes, and what it does to a wrapped model.

        Raises:
            RecipeError: The recipe has mistakes, or names something that this model does not have.
        """
        from qdq.quantization.wrap import slots
        from qdq.recipes.edits import per_tensor_weights, switch_slots
        from qdq.recipes.plan import plan
        from qdq.recipes.recipe import load_recipe

        changes = self.changes
        chosen = load_recipe(self.recipe).restrict(include=changes.include or [], exclude=changes.exclude or [])
        chosen = replace(chosen, refinement=self.refinement.applied(chosen.refinement))
        chosen = per_tensor_weights(chosen) if changes.per_tensor else chosen
        chosen = switch_slots(
            chosen,
            slots(model),
            disable=changes.disable,
            disable_keywords=changes.disable_keyword or [],
            disable_layer_modules=changes.disable_layer_module or [],
            enable_layer_modules=changes.enable_layer_module or [],
        )
        return plan(model, chosen)
