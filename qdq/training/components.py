"""The components of a training: model, quantizers, optimizer and learning rates, as accelerate prepared them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError
from qdq.training.accelerator import unwrap_model, wrap_model
from qdq.training.optimizer import make_optimizer, make_scheduler, parameter_groups, parameters_of
from qdq.training.quantization import QuantizerSchedule

if TYPE_CHECKING:
    from torch import nn

    from qdq.training.accelerator import TrainingAccelerator
    from qdq.training.settings import TrainingSettings

__all__ = ["Components", "make_components"]


@dataclass(frozen=True)
class Components:
    """All that a step of a training changes.

    Args:
        accelerator: Devices, processes and precision.
        model: The model as its owner knows it.
        wrapped: The same model as accelerate wrapped it.
        whole_model: Where weights are sharded, in the first process, a whole copy of the model to save; else None.
        quantizers: What quantizers do from step to step.
        weights: Parameters whose gradient is clipped.
        scales: Learned scales, whose gradient is not clipped.
        optimizer: The optimizer as accelerate wrapped it.
        scheduler: The scheduler of the learning rates.
    """

    accelerator: TrainingAccelerator
    model: nn.Module
    wrapped: nn.Module
    whole_model: nn.Module | None
    quantizers: QuantizerSchedule
    weights: list[nn.Parameter]
    scales: list[nn.Parameter]
    optimizer: Any
    scheduler: Any

    def close(self) -> None:
        """Leave the model quantizing, and without what accelerate wrapped around it."""
        self.quantizers.close()
        unwrap_model(self.accelerator, self.wrapped)


def make_components(
    model: nn.Module, total: int, settings: TrainingSettings, accelerator: TrainingAccelerator, *, is_own_loss: bool
) -> Components:
    """Return the components that train ``model`` in ``total`` steps.

    Raises:
        ConfigError: If settings do not fit the model, or there is nothing to train.
    """
    quantizers = QuantizerSchedule(model, total, settings, whole_weights=not accelerator.is_sharded)
    if settings.gradient_checkpointing:
        _enable_checkpointing(model)
    # Grouped before the model is wrapped: sharded parameters have lost the shapes that tell matrices from vectors.
    groups = parameter_groups(model, settings)
    wrapped, whole_model = wrap_model(accelerator, model, is_own_loss=is_own_loss, settings=settings)
    parameters = parameters_of(wrapped, groups)
    optimizer = make_optimizer(groups, parameters)
    return Components(
        accelerator=accelerator,
        model=model,
        wrapped=wrapped,
        whole_model=whole_model,
        quantizers=quantizers,
        weights=[p for group, own in zip(groups, parameters, strict=True) if not group.is_scales for p in own],
        scales=[p for group, own in zip(groups, parameters, strict=True) if group.is_scales for p in own],
        optimizer=accelerator.prepare(optimizer),
        # Not prepared by accelerate, whose schedulers advance once for every process in each step.
        scheduler=make_scheduler(optimizer, groups, total, settings),
    )


def _enable_checkpointing(model: nn.Module) -> None:
    enable = getattr(model, "gradient_checkpointing_enable", None)
    if enable is None:
        raise ConfigError(f"{type(model).__name__} does not support gradient checkpointing: leave it out")
    enable()
