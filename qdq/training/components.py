"""What is trained, and with what: the model as processes share it, its quantizers, optimizer and learning rates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError
from qdq.training.launch import prepare, release
from qdq.training.optimizer import groups, make_optimizer, make_scheduler, parameters_of
from qdq.training.quantization import QuantizerSchedule

if TYPE_CHECKING:
    from torch import nn

    from qdq.training.launch import Launch
    from qdq.training.settings import TrainingSettings

__all__ = ["Components", "make_components"]


@dataclass(frozen=True)
class Components:
    """All that a step changes.

    Args:
        launch: processes, devices, precision.
        model: as its owner knows it.
        wrapped: the same as accelerate has wrapped it.
        twin: a whole copy in the first process, to save, where weights are sharded; else None.
        quantization: what quantizers do meanwhile.
        weights: parameters whose gradient has a longest length.
        scales: those of quantizers, which have not.
        optimizer: as accelerate has wrapped it.
        scheduler: of the learning rates.
    """

    launch: Launch
    model: nn.Module
    wrapped: nn.Module
    twin: nn.Module | None
    quantization: QuantizerSchedule
    weights: list[nn.Parameter]
    scales: list[nn.Parameter]
    optimizer: Any
    scheduler: Any

    def close(self) -> None:
        """Leave the model as its owner expects it."""
        self.quantization.close()
        release(self.launch, self.wrapped)


def make_components(
    model: nn.Module, total: int, settings: TrainingSettings, launch: Launch, *, is_own_loss: bool
) -> Components:
    """What trains ``model`` in ``total`` steps.

    Raises:
        ConfigError: settings that do not go with the model, or nothing to train.
    """
    quantization = QuantizerSchedule(model, total, settings, whole_weights=not launch.is_sharded)
    if settings.gradient_checkpointing:
        _enable_checkpointing(model)
    found = groups(model, settings)
    wrapped, twin = prepare(launch, model, is_own_loss=is_own_loss, settings=settings)
    parameters = parameters_of(wrapped, found)
    plain = make_optimizer(found, parameters)
    return Components(
        launch=launch,
        model=model,
        wrapped=wrapped,
        twin=twin,
        quantization=quantization,
        weights=[p for g, own in zip(found, parameters, strict=True) if not g.is_scales for p in own],
        scales=[p for g, own in zip(found, parameters, strict=True) if g.is_scales for p in own],
        optimizer=launch.prepare(plain),
        scheduler=make_scheduler(plain, found, total, settings),
    )


def _enable_checkpointing(model: nn.Module) -> None:
    enable = getattr(model, "gradient_checkpointing_enable", None)
    if enable is None:
        raise ConfigError(f"{type(model).__name__} offers no gradient checkpointing")
    enable()
