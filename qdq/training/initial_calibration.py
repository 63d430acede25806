"""The calibration that a quantized model begins its training with: the recorded one, or one on the training data."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError
from qdq.recipes.recipe import Recipe

if TYPE_CHECKING:
    from collections.abc import Callable

    from qdq.models.model import Model
    from qdq.source import ModelDirectory
    from qdq.training.epoch_loader import EpochLoader
    from qdq.training.settings import InitialCalibration

__all__ = ["calibrate_on_training_data", "read_calibration"]

_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def read_calibration(directory: ModelDirectory) -> tuple[Recipe, dict[str, Any]]:
    """Return the recipe of a quantized checkpoint and the record of its calibration.

    Raises:
        ConfigError: If it is a QDQBERT checkpoint, which has neither.
    """
    document = directory.quantization
    if document is None:
        raise ConfigError(f"{directory}: is a QDQBERT checkpoint without ranges; calibrate it first with qdq calibrate")
    return Recipe.from_dict(document["recipe"], source=str(directory)), dict(document["calibration"])


def calibrate_on_training_data(
    model: Model, recipe: Recipe, loader: EpochLoader, settings: InitialCalibration, *, say: Callable[[str], None]
) -> tuple[Recipe, dict[str, Any]]:
    """Quantize a float model in place and calibrate it on the first batches of its training.

    Args:
        model: The float model.
        recipe: The recipe to quantize with.
        loader: Batches of the training.
        settings: How many rows to calibrate on, and whether to find smoothing and shifts.
        say: Called with a line about the calibration.

    Returns:
        The recipe with the refinement that was used, and the record of the calibration.
    """
    import calibration
    from qdq.recipes.apply import quantize

    quantize(model, recipe)
    refinement = recipe.refinement if settings.refine else type(recipe.refinement)()
    # Training moves weights and biases further than rounding and bias correction would.
    refinement = replace(refinement, rounding="nearest", bias_correction=False)
    summary = calibration.calibrate_and_refine(model.eval(), _model_inputs(loader, settings.samples), refinement)
    say(f"calibrated on {summary.samples} samples, {summary.tokens} tokens")
    return replace(recipe, refinement=refinement), summary.to_dict()


def _model_inputs(loader: EpochLoader, samples: int) -> list[dict[str, Any]]:
    """Return the first batches of the first epoch, without labels, with at least ``samples`` rows."""
    count = -(-samples // loader.batch_size)
    batches = []
    for _, batch in zip(range(count), loader(0), strict=False):
        inputs = {name: tensor for name, tensor in batch.items() if name in _INPUTS}
        if loader.task == "sts":
            inputs = {name: tensor.flatten(0, 1) for name, tensor in inputs.items()}
        batches.append(inputs)
    return batches
