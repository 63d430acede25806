"""One step of a training: the gradients of some batches, clipped, and an update of the weights."""

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
    from qdq.training.loss import Loss
    from qdq.training.progress import TrainingProgress

__all__ = ["TrainingStep"]


class TrainingStep:
    """Does the steps of a training.

    Args:
        components: Model, quantizers, optimizer and scheduler.
        loss: Loss of the model on a batch, a mean over its labels.
        max_grad_norm: Norm to clip the gradient of the weights to; 0 does not clip.
    """

    def __init__(self, components: Components, loss: Loss, *, max_grad_norm: float) -> None:
        self._components, self._accelerator = components, components.accelerator
        self._loss = loss
        self._max_norm = max_grad_norm

    def __call__(self, group: Sequence[tuple[Any, int]], progress: TrainingProgress) -> float:
        """Do one step on several batches as if they were one.

        Args:
            group: The batches, each with the number of its labels.
            progress: How far the training has come.

        Returns:
            The mean loss over all labels of the batches, in all processes.

        Raises:
            ConfigError: If the loss is no single number with a gradient.
            DataError: If there are labels that the model has no class for.
            TrainingError: If the loss is not finite; the weights stay as they were.
        """
        components, accelerator = self._components, self._accelerator
        components.quantizers.before_step(progress.step)
        components.wrapped.train()
        total = self._sum_over_processes(sum(count for _, count in group))
        loss = torch.zeros((), device=accelerator.device)
        for number, (batch, count) in enumerate(group):
            is_last = number == len(group) - 1
            # Processes exchange gradients once a step, with the last batch.
            with nullcontext() if is_last else accelerator.no_sync(components.wrapped):
                share = self._share_of_loss(batch, count, total)
                accelerator.backward(share)
            loss += share.detach().to(torch.float32)
        if accelerator.num_processes > 1:
            loss = accelerator.reduce(loss, "mean")
        value = float(loss)
        if not math.isfinite(value):
            raise TrainingError(_describe_not_finite(value, progress))
        self._clip()
        components.optimizer.step()
        components.scheduler.step()
        components.optimizer.zero_grad()
        components.quantizers.after_step()
        return value

    def _share_of_loss(self, batch: Mapping[str, Any], count: int, total: float) -> Tensor:
        """Return the loss of one batch, scaled so that the sum over the batches of all processes is their mean."""
        accelerator = self._accelerator
        _check_labels(self._components.model, batch, accelerator.device)
        on_device = {
            name: value.to(accelerator.device) if isinstance(value, torch.Tensor) else value
            for name, value in batch.items()
        }
        loss = self._loss(self._components.wrapped, on_device)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise ConfigError(f"the loss must be a tensor with one number, is {_describe(loss)}")
        if not loss.requires_grad:
            raise ConfigError("the loss has no gradient: compute it from the model that is trained, without detach()")
        # DDP and FSDP average gradients over processes, so the share of one is multiplied by their number.
        share = count * accelerator.num_processes / total if total else 1.0
        return loss.reshape(()) * share

    def _sum_over_processes(self, count: int) -> float:
        accelerator = self._accelerator
        if accelerator.num_processes == 1:
            return float(count)
        return float(accelerator.reduce(torch.tensor(float(count), device=accelerator.device), "sum"))

    def _clip(self) -> None:
        """Clip the gradient of the weights; average that of scales over processes, which FSDP does not do."""
        max_norm, accelerator, scales = self._max_norm, self._accelerator, self._components.scales
        if not accelerator.is_sharded:
            if max_norm:
                accelerator.clip_grad_norm_(self._components.weights, max_norm)
            return
        if max_norm:
            accelerator.unscale_gradients()
        averaged = [None if p.grad is None else accelerator.reduce(p.grad, "mean") for p in scales]
        if max_norm:
            # FSDP computes the norm over all processes and over every gradient that it finds: hide those of scales.
            for parameter in scales:
                parameter.grad = None
            sharded: Any = self._components.wrapped
            sharded.clip_grad_norm_(max_norm)
        for parameter, gradient in zip(scales, averaged, strict=True):
            parameter.grad = gradient


def _describe_not_finite(loss: float, progress: TrainingProgress) -> str:
    good = "there was no evaluation before"
    if progress.best is not None:
        good = f"the last good model is that of step {progress.best_step}, metric {progress.best:.4f}"
    what = "not a number" if math.isnan(loss) else "infinite"
    return (
        f"step {progress.step + 1} (epoch {progress.epoch + 1}): the loss is {what}; {good}. A smaller learning rate, "
        "a longer warm-up or another precision may help"
    )


def _check_labels(model: nn.Module, batch: Mapping[str, Any], device: torch.device) -> None:
    """Raise if a label has no class, where CUDA would end the process; on a CPU the model raises by itself."""
    labels, config = batch.get("labels"), getattr(model, "config", None)
    task = getattr(model, "task", None)
    if device.type == "cpu" or config is None or task not in {"sequence-classification", "token-classification"}:
        return
    if isinstance(labels, torch.Tensor) and labels.device.type == "cpu" and not labels.is_floating_point():
        from qdq.models.inputs import check_range

        if config.problem_type in (None, "single_label_classification"):
            check_range("labels", labels, config.num_labels, what="the classes", ignored=-100)


def _describe(value: object) -> str:
    return f"of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
