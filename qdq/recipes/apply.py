"""Apply a recipe to a model: to a float one, whose modules are wrapped, or to one that is wrapped already."""

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
    """Wrap every quantizable module of a float model, in place, and give the slots the specs of ``recipe``.

    Weights get their scales at once; activations wait for ``qdq.calibrate``. All quantizers are off.

    Raises:
        RecipeError: for a recipe with mistakes, one that names slots this model does not have, or a model that is
            wrapped already. The model is then as it was.
        CalibrationError: when weights are NaN or infinite; likewise.
    """
    if not isinstance(recipe, Recipe):
        recipe = load_recipe(recipe)
    if any(quantizers(model)):
        raise RecipeError("the model is quantized already; apply_recipe(model, recipe) gives it another recipe")
    replaced = wrap(model)
    try:
        apply_recipe(model, recipe)
    except BaseException:
        unwrap(model, replaced)
        raise
    return model


def apply_recipe(model: nn.Module, recipe: Recipe) -> None:
    """Give the slots of a wrapped model the specs of ``recipe``; ranges found by calibration are kept and used.

    All quantizers are off afterwards; ``qdq.quantization.quantizer.set_mode`` switches them on.

    Raises:
        RecipeError: for a recipe that names slots this model does not have, or gives a slot a spec it cannot have. The
            model is then as it was.
        CalibrationError: when weights are NaN or infinite; likewise.
    """
    apply_specs(model, recipe.assign(slots(model)))
