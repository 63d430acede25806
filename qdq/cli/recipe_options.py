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
_REFINING = "Accuracy (overrides the recipe)"


@dataclass(frozen=True, kw_only=True)
class RecipeChanges:
    """Options that change a recipe; see :func:`qdq.cli.option_groups.with_groups`."""

    include: Annotated[
        list[str] | None,
        typer.Option(
            "--include",
            metavar="GLOB",
            help="Quantize only modules whose names match this pattern, as in encoder.layers.*. Repeatable.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    exclude: Annotated[
        list[str] | None,
        typer.Option(
            "--exclude",
            metavar="GLOB",
            help="Keep modules in float whose names match this pattern. Repeatable.",
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
            help="Keep every slot in float, except those of --quant-enable-layer-module.",
            rich_help_panel=_PANEL,
        ),
    ] = False
    disable_keyword: Annotated[
        list[str] | None,
        typer.Option(
            "--quant-disable-keyword",
            metavar="K",
            help="Keep slots in float whose names contain K, such as attention.query, or match it as a regular "
            "expression. Repeatable.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    disable_layer_module: Annotated[
        list[str] | None,
        typer.Option(
            "--quant-disable-layer-module",
            metavar="REGEX",
            help=r"In every layer, keep slots in float whose names inside the layer begin with a match, as in "
            r"attention.\S+ or feed_forward.up. Repeatable.",
            rich_help_panel=_PANEL,
        ),
    ] = None
    enable_layer_module: Annotated[
        list[str] | None,
        typer.Option(
            "--quant-enable-layer-module",
            metavar="REGEX",
            help="In every layer, quantize slots whose names inside the layer begin with a match, as the recipe says, "
            "even if an option above keeps them in float. Repeatable.",
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
            help="Smoothing strength (alpha of SmoothQuant): how much of the difference between channels to move "
            "from activations to weights. 0.9 is usual; off disables smoothing.",
            rich_help_panel=_REFINING,
        ),
    ] = None
    shift: Annotated[
        bool | None,
        typer.Option(
            "--shift/--no-shift",
            metavar="",
            help="Center each channel of LayerNorm outputs around zero (Outlier Suppression+).",
            rich_help_panel=_REFINING,
        ),
    ] = None
    bias_correction: Annotated[
        bool | None,
        typer.Option(
            "--bias-correction/--no-bias-correction",
            metavar="",
            help="Subtract the mean quantization error of each linear layer from its bias.",
            rich_help_panel=_REFINING,
        ),
    ] = None
    clipping: Annotated[
        str | None,
        typer.Option(
            "--clipping",
            metavar="none|token-wise",
            help="Clipping of the inputs of linear layers. token-wise (Outlier Suppression) clips the tokens with the "
            "most extreme values, as many as give the least error.",
            rich_help_panel=_REFINING,
        ),
    ] = None
    rounding: Annotated[
        str | None,
        typer.Option(
            "--rounding",
            metavar="nearest|gptq",
            help="Rounding of weights. gptq chooses it so that the rounding errors of a row cancel out.",
            rich_help_panel=_REFINING,
        ),
    ] = None
    no_refinement: Annotated[
        bool,
        typer.Option(
            "--no-refinement",
            metavar="",
            help="Apply none of these refinements, except those that other options of this panel name.",
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

        return self.plan(skeleton(directory.config, task, with_pooler=directory.has_pooler)).recipe

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
