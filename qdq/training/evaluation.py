"""Evaluations between steps: the figures, which of them was the best, and whether there is progress."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch

from qdq.training.quantization import keep_ranges
from qdq.training.resume_file import get_random, ranges_of, set_random, set_ranges

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

    from qdq.training.components import Components
    from qdq.training.log import Log
    from qdq.training.resume_file import Position

__all__ = ["Evaluate", "Evaluation"]

Evaluate = Callable[[Any], Mapping[str, float] | float]
"""The figures of a model that is in eval mode and quantizes as it will when deployed; the first one counts.

It is called without gradients."""


class Evaluation:
    """Measures the model, and keeps the best.

    Args:
        components: what is trained.
        evaluate: see :data:`Evaluate`.
        better: ``higher`` or ``lower``, which way the first figure gets better.
        patience: evaluations without a better one that end the training; None: it never ends so.
        keep_best: hold the weights of the best evaluation in memory.
        on_best: called in the first process with the model and how far it is, when it was the best so far.
        log: that takes the figures.

    Attributes:
        best: weights and ranges of the best evaluation; None where they are not kept.
    """

    def __init__(
        self,
        components: Components,
        evaluate: Evaluate,
        *,
        better: str,
        patience: int | None,
        keep_best: bool,
        on_best: Callable[[Any, Position], None] | None,
        log: Log,
    ) -> None:
        self.best: dict[str, Any] | None = None
        self._equipment, self._evaluate, self._log = components, evaluate, log
        self._better, self._patience = better, patience
        self._keep_best, self._on_best = keep_best, on_best

    def __call__(self, here: Position) -> None:
        """Measure the model as it would be deployed; ``here`` learns what came of it."""
        figures = self._measure()
        metric = float(next(iter(figures.values())))
        here.history.append({"step": here.step, **{name: float(value) for name, value in figures.items()}})
        self._log.add(here.step, figures)
        is_better = here.best is None or (metric > here.best if self._better == "higher" else metric < here.best)
        if math.isfinite(metric) and is_better:
            here.best, here.best_step, here.waited = metric, here.step, 0
            self._take_best(here)
        else:
            here.waited += 1
            here.stopped = self._patience is not None and here.waited >= self._patience

    def load_best(self) -> None:
        """Give the model the weights of the best evaluation, where they were kept."""
        if self.best is not None:
            self._equipment.model.load_state_dict(self.best["model"])
            set_ranges(self._equipment.model, self.best["ranges"])

    def _measure(self) -> dict[str, Any]:
        """The figures; random numbers that the evaluation draws leave the training as it is."""
        components = self._equipment
        random = get_random(components.launch.device)
        components.quantization.deployed()
        components.wrapped.eval()
        with _plain_forward(components.model), torch.no_grad():
            found = self._evaluate(components.wrapped if components.launch.is_sharded else components.model)
        set_random(random, components.launch.device)
        return dict(found) if isinstance(found, Mapping) else {"metric": float(found)}

    def _take_best(self, here: Position) -> None:
        launch, model = self._equipment.launch, self._equipment.model
        if launch.is_sharded:
            weights = launch.get_state_dict(self._equipment.wrapped)
            if self._equipment.twin is not None:
                model = self._equipment.twin
                model.load_state_dict(weights)
        if launch.is_main_process and self._on_best is not None:
            keep_ranges(model)
            self._on_best(model, here)
        if self._keep_best and not launch.is_sharded:
            keep_ranges(model)
            weights = {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}
            self.best = {"model": weights, "ranges": ranges_of(model)}
        launch.wait_for_everyone()


@contextmanager
def _plain_forward(model: nn.Module) -> Iterator[None]:
    """For as long as it lasts, without the mixed precision that accelerate puts around ``forward``."""
    patched = model.__dict__.get("forward")
    with suppress(AttributeError):
        if patched is not None:
            model.forward = model._original_forward  # type: ignore[assignment]
    try:
        yield
    finally:
        if patched is not None:
            model.forward = patched
