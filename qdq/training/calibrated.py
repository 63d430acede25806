"""A model that quantizes from the first step on: one that was calibrated before, or here, on the training data."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError
from qdq.recipes.recipe import Recipe
from qdq.source import ModelDirectory

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from qdq.models.model import Model
    from qdq.training.data import EpochLoader

__all__ = ["calibrate_on", "recorded"]

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def recorded(path: Path) -> tuple[Recipe, dict[str, Any]]:
    """The recipe of a quantized checkpoint, and the record of its calibration.

    Raises:
        ConfigError: it is one of QDQBERT, which holds neither.
    """
    document = ModelDirectory.of(path).quantization
    if document is None:
        raise ConfigError(f"{path}: a QDQBERT checkpoint is to be calibrated first: qdq calibrate")
    return Recipe.from_dict(document["recipe"], source=str(path)), dict(document["calibration"])


def calibrate_on(
    loader: EpochLoader, model: Model, recipe: Recipe, *, samples: int, refine: bool, say: Callable[[str], None]
) -> tuple[Recipe, dict[str, Any]]:
    """Quantize a float model in place, ranges from the batches that it will be trained on first.

    Args:
        loader: of the training.
        model: float; it quantizes afterwards.
        recipe: how.
        samples: to find ranges on.
        refine: whether that is done with the recipe's transforms.
        say: told how much was seen.

    Returns:
        The recipe as it was followed, and the record of the calibration.
    """
    import calibration
    from qdq.recipes.apply import quantize

    quantize(model, recipe)
    kept = recipe.refinement if refine else type(recipe.refinement)()
    kept = replace(kept, rounding="nearest", bias_correction=False)  # the training itself does more
    summary = calibration.calibrate_and_refine(model.eval(), _batches(loader, samples), kept)
    say(f"calibrated on {summary.samples} samples, {summary.tokens} tokens")
    return replace(recipe, refinement=kept), summary.to_dict()


def _batches(loader: EpochLoader, samples: int) -> list[dict[str, Any]]:
    """Enough of the first epoch, as the model takes them."""
    wanted = -(-samples // loader.batch_size)
    batches = []
    for _, batch in zip(range(wanted), loader(0), strict=False):
        inputs = {name: tensor for name, tensor in batch.items() if name in _INPUTS}
        if loader.task == "sts":
            inputs = {name: tensor.flatten(0, 1) for name, tensor in inputs.items()}
        batches.append(inputs)
    return batches
