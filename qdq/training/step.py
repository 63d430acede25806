"""One step: gradients of some batches, as of one that holds them all, and what the optimizer makes of them."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch

from qdq.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from torch import Tensor, nn

    from qdq.training.components import Components
    from qdq.training.objective import Loss
    from qdq.training.resume_file import Position

__all__ = ["Step"]


class Step:
    """Does the steps of a training.

    Args:
        components: what they change.
        loss: of the model and a batch, a mean.
        max_grad_norm: longest gradient of the weights; 0 for no limit.
    """

    def __init__(self, components: Components, loss: Loss, *, max_grad_norm: float) -> None:
        self._equipment, self._launch = components, components.launch
        self._loss = loss
        self._longest = max_grad_norm

    def __call__(self, group: Sequence[tuple[Any, int]], position: Position) -> float:
        """Do one on the batches of ``group``, each with the number of its labels; the mean loss over all of them.

        Raises:
            ConfigError: the loss is no number with a gradient.
            DataError: labels that the model has no class for.
            TrainingError: the loss is not finite; the weights stay as they were.
        """
        components, launch = self._equipment, self._launch
        components.quantization.before_step(position.step)
        components.wrapped.train()
        total = self._sum(sum(weight for _, weight in group))
        value = torch.zeros((), device=launch.device)
        for number, (batch, weight) in enumerate(group):
            is_last = number == len(group) - 1
            with nullcontext() if is_last else launch.no_sync(components.wrapped):
                part = self._part(batch, weight, total)
                launch.backward(part)
            value += part.detach().to(torch.float32)
        if launch.num_processes > 1:
            value = launch.reduce(value, "mean")
        figure = float(value)
        if not math.isfinite(figure):
            raise TrainingError(_not_finite(figure, position))
        self._clip()
        components.optimizer.step()
        components.scheduler.step()
        components.optimizer.zero_grad()
        components.quantization.after_step()
        return figure

    def _part(self, batch: Mapping[str, Any], weight: int, total: float) -> Tensor:
        """The loss of one batch, scaled so that the sum over all batches and processes is their mean."""
        launch = self._launch
        _check_labels(self._equipment.model, batch, launch.device)
        placed = {name: value.to(launch.device) if isinstance(value, torch.Tensor) else value
                  for name, value in batch.items()}  # fmt: skip
        loss = self._loss(self._equipment.wrapped, placed)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise ConfigError(f"the loss must be one number in a tensor, is {_shown(loss)}")
        if not loss.requires_grad:
            raise ConfigError("the loss has no gradient: was it computed without one, or with a frozen model?")
        share = weight * launch.num_processes / total if total else 1.0
        return loss.reshape(()) * share

    def _sum(self, count: int) -> float:
        if self._launch.num_processes == 1:
            return float(count)
        return float(self._launch.reduce(torch.tensor(float(count), device=self._launch.device), "sum"))

    def _clip(self) -> None:
        """Shorten the gradient of the weights; that of scales is averaged here where FSDP leaves it alone."""
        longest, launch, scales = self._longest, self._launch, self._equipment.scales
        if not launch.is_sharded:
            if longest:
                launch.clip_grad_norm_(self._equipment.weights, longest)
            return
        if longest:
            launch.unscale_gradients()
        averaged = [None if p.grad is None else launch.reduce(p.grad, "mean") for p in scales]
        if longest:
            for parameter in scales:  # out of sight: FSDP clips all that there is
                parameter.grad = None
            sharded: Any = self._equipment.wrapped
            sharded.clip_grad_norm_(longest)  # by the norm over all processes
        for parameter, gradient in zip(scales, averaged, strict=True):
            parameter.grad = gradient


def _not_finite(figure: float, position: Position) -> str:
    good = "no evaluation has come before"
    if position.best is not None:
        good = f"the last good model is that of step {position.best_step}, metric {position.best:.4f}"
    what = "not a number" if math.isnan(figure) else "infinite"
    return (
        f"step {position.step + 1} (epoch {position.epoch + 1}): the loss is {what}; {good}. A smaller learning rate, "
        "more warm-up or another precision may help"
    )


def _check_labels(model: nn.Module, batch: Mapping[str, Any], device: torch.device) -> None:
    """On an accelerator a class that does not exist would end the process; the CPU's model says it itself."""
    labels, config = batch.get("labels"), getattr(model, "config", None)
    task = getattr(model, "task", None)
    if device.type == "cpu" or config is None or task not in {"sequence-classification", "token-classification"}:
        return
    if isinstance(labels, torch.Tensor) and labels.device.type == "cpu" and not labels.is_floating_point():
        from qdq.models.inputs import check_range

        if config.problem_type in (None, "single_label_classification"):
            check_range("labels", labels, config.num_labels, what="the classes", ignored=-100)


def _shown(value: object) -> str:
    return f"of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
