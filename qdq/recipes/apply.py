"""Apply a recipe to a float model, whose modules are wrapped, or to a model that is wrapped already."""

from __future__ import annotations

from typing import TYPE_CHECKING

from qdq.errors import RecipeError
from qdq.quantization.quantizer import quantizers
from qdq.quantization.wrap import apply_specs, slots, unwrap, wrap
from qdq.recipes.recipe import Recipe, load_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

__all__ = ["apply_recipe", "quantize"]


def quantize(model: nn.Module, recipe: Recipe | str | Path) -> nn.Module:
    """Wrap every quantizable module of a float model, in place, and give the slots the specs of a recipe.

    Weights get their scales at once; activations get theirs from ``qdq.calibrate``. All quantizers are off.

    Args:
        model: A float model.
        recipe: A recipe, the name of a preset, or the path of a YAML file.

    Returns:
        The same model.

    Raises:
        RecipeError: The recipe has mistakes or names slots that this model does not have, or the model is wrapped
            already. The model is then unchanged.
        CalibrationError: Weights are NaN or infinite. The model is then unchanged.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    if any(quantizers(model)):
        raise RecipeError("the model is quantized already; use apply_recipe(model, recipe) to give it another recipe")
    replaced = wrap(model)
    try:
        apply_recipe(model, recipe)
    except BaseException:  # also KeyboardInterrupt, because wrapping a large model takes a while
        unwrap(model, replaced)
        raise
    return model


def apply_recipe(model: nn.Module, recipe: Recipe) -> None:
    """Give the slots of a wrapped model the specs of another recipe. Ranges that calibration found are kept and used.

    All quantizers are off afterwards. ``qdq.quantization.quantizer.set_mode`` switches them on.

    Args:
        model: A wrapped model.
        recipe: The recipe.

    Raises:
        RecipeError: The recipe names slots that this model does not have, or gives a slot a spec that it cannot have.
            The model is then unchanged.
        CalibrationError: Weights are NaN or infinite. The model is then unchanged.
    """
    apply_specs(model, recipe.assign(slots(model)))
