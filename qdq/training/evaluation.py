"""Evaluations between steps: measure the model, keep the best one, and tell whether there is progress."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch

from qdq.training.quantization import get_ranges, set_ranges, update_ranges
from qdq.training.random_state import get_random_state, set_random_state

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from qdq.training.components import Components
    from qdq.training.progress import TrainingProgress
    from qdq.training.training_log import TrainingLog

__all__ = ["Evaluate", "Evaluator"]

_LOG = logging.getLogger(__name__)

Evaluate = Callable[[Any], Mapping[str, float] | float]
"""Returns the metrics of a model by name, the deciding one first.

The model is in eval mode and quantizes as it will when it is deployed; gradients are off."""


class Evaluator:
    """Measures the model between steps, and keeps the best.

    Args:
        components: The components of the training.
        evaluate: Measures a model; see :data:`Evaluate`.
        better: Whether a ``higher`` or a ``lower`` first metric is better.
        patience: Stop after this many evaluations in a row without a better one; None never stops.
        keep_best: Whether to hold the weights of the best evaluation in memory.
        on_best: Called in the first process with the model and the progress, after an evaluation that is the best yet.
        log: Log that takes the metrics.

    Attributes:
        best: Weights and ranges of the best evaluation; None where they are not kept.
    """

    def __init__(
        self,
        components: Components,
        evaluate: Evaluate,
        *,
        better: str,
        patience: int | None,
        keep_best: bool,
        on_best: Callable[[Any, TrainingProgress], None] | None,
        log: TrainingLog,
    ) -> None:
        self.best: dict[str, Any] | None = None
        self._has_warned = not components.accelerator.is_main_process
        self._components, self._evaluate, self._log = components, evaluate, log
        self._better, self._patience = better, patience
        self._keep_best, self._on_best = keep_best, on_best

    def __call__(self, progress: TrainingProgress) -> None:
        """Measure the model as it would be deployed, and record the outcome in ``progress``."""
        metrics = self._measure()
        name, metric = next((name, float(value)) for name, value in metrics.items())
        progress.history.append({"step": progress.step, **{name: float(value) for name, value in metrics.items()}})
        self._log.add(progress.step, metrics)
        best = progress.best
        is_better = best is None or (metric > best if self._better == "higher" else metric < best)
        if not math.isfinite(metric):
            self._warn(name, metric, progress.step)
        if math.isfinite(metric) and is_better:
            progress.best, progress.best_step, progress.waited = metric, progress.step, 0
            self._keep(progress)
        elif best is not None:  # a metric that was never defined says nothing about progress
            progress.waited += 1
            progress.stopped = self._patience is not None and progress.waited >= self._patience

    def load_best(self) -> None:
        """Load the weights of the best evaluation into the model, if they were kept."""
        if self.best is not None:
            self._components.model.load_state_dict(self.best["model"])
            set_ranges(self._components.model, self.best["ranges"])

    def _warn(self, name: str, metric: float, step: int) -> None:
        if not self._has_warned:
            what = "undefined" if math.isnan(metric) else "infinite"
            _LOG.warning("step %d: the metric %s is %s, so this step cannot be the best one", step, name, what)
        self._has_warned = True

    def _measure(self) -> dict[str, Any]:
        components, device = self._components, self._components.accelerator.device
        # Random numbers that the evaluation draws must not change the training.
        random = get_random_state(device)
        components.quantizers.quantize_all()
        components.wrapped.eval()
        is_sharded = components.accelerator.is_sharded
        # The deployed model computes in float32 between its quantizers, so it is measured without mixed precision.
        # Sharded weights can be used through the wrapper only.
        with _without_mixed_precision(components.model), torch.no_grad():
            found = self._evaluate(components.wrapped if is_sharded else components.model)
        set_random_state(random, device)
        return dict(found) if isinstance(found, Mapping) else {"metric": float(found)}

    def _keep(self, progress: TrainingProgress) -> None:
        accelerator, model = self._components.accelerator, self._components.model
        if accelerator.is_sharded:
            # All processes take part in gathering the weights; the first one has a model to put them into.
            weights = accelerator.get_state_dict(self._components.wrapped)
            if self._components.whole_model is not None:
                model = self._components.whole_model
                model.load_state_dict(weights)
        if accelerator.is_main_process and self._on_best is not None:
            update_ranges(model)
            self._on_best(model, progress)
        if self._keep_best and not accelerator.is_sharded:
            update_ranges(model)
            weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
            self.best = {"model": weights, "ranges": get_ranges(model)}
        accelerator.wait_for_everyone()


@contextmanager
def _without_mixed_precision(model: nn.Module) -> Iterator[None]:
    # accelerate puts an instance attribute ``forward`` over the method of the class, and keeps the original beside it.
    patched = model.__dict__.get("forward")
    with suppress(AttributeError):
        if patched is not None:
            model.forward = model._original_forward  # type: ignore[assignment]
    try:
        yield
    finally:
        if patched is not None:
            model.forward = patched
