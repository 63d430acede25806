"""How a training is run."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["PRECISIONS", "RANGES", "SCHEDULES", "TrainingSettings"]

SCHEDULES = ("linear", "cosine", "constant")
RANGES = ("fixed", "moving", "learned")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """Options of a training. Shares are of all its steps, 0 to 1.

    Args:
        epochs: passes over the data.
        max_steps: end after so many steps, whatever ``epochs`` says.
        lr: the highest learning rate of the weights.
        weight_decay: of AdamW, for matrices; biases and norms have none.
        schedule: ``linear`` and ``cosine`` fall to 0, ``constant`` stays.
        warmup: the share of the steps in which the learning rate rises from 0.
        max_grad_norm: longest gradient of the weights; 0 for no limit.
        accumulation: batches whose gradients make one step.
        mixed_precision: ``no``, ``bf16`` or ``fp16``; None: what ``accelerate launch`` says.
        gradient_checkpointing: compute activations again in the backward pass instead of keeping them.
        seed: of dropout, of the order of the data, and of new heads.
        eval_steps: steps between two evaluations; None: one after every epoch (``qdq finetune``: in QAT four an epoch).
        patience: stop after so many evaluations without a better one; None: never.
        save_steps: steps between two states to resume from, besides one at each evaluation.
        ranges: of quantizers, until they are frozen. ``fixed``: activations keep what calibration found, the scales of
            weights follow the weights. ``moving``: those of activations are moving averages of what passes.
            ``learned``: all scales are trained (LSQ).
        scale_lr: with ``learned``, the learning rate of scales relative to their own size.
        momentum: with ``moving``, the share of a batch in the average.
        freeze_ranges: the share of the steps after which ranges and scales stay as they are.
        activations_from: the share of the steps in float, before activations are quantized.
        weights_from: the share of the steps before weights are quantized.

    Raises:
        ConfigError: values out of range, all of them.
    """

    epochs: int = 3
    max_steps: int | None = None
    lr: float = 5e-5
    weight_decay: float = 0.01
    schedule: str = "linear"
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    accumulation: int = 1
    mixed_precision: str | None = None
    gradient_checkpointing: bool = False
    seed: int = 0
    eval_steps: int | None = None
    patience: int | None = None
    save_steps: int | None = None
    ranges: str = "fixed"
    scale_lr: float = 1e-3
    momentum: float = 0.01
    freeze_ranges: float = 0.8
    activations_from: float = 0.0
    weights_from: float = 0.0

    def __post_init__(self) -> None:
        problems = [f"{name} is {getattr(self, name)!r}, must be {rule}" for name, (holds, rule) in _RULES.items()
                  if not holds(getattr(self, name))]  # fmt: skip
        if not problems and self.activations_from > self.weights_from > 0:
            problems.append(
                f"weights_from is {self.weights_from:g}, activations_from {self.activations_from:g}: activations are "
                "quantized first; 0 for weights that are quantized from the beginning"
            )
        if problems:
            raise ConfigError(describe_problems("settings of the training", problems))

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def _whole(low: int, *, optional: bool = False) -> tuple[Callable[[Any], bool], str]:
    def holds(value: Any) -> bool:
        if value is None:
            return optional
        return isinstance(value, int) and not isinstance(value, bool) and value >= low

    return holds, f"a whole number of at least {low}"


def _number(low: float, high: float = math.inf, *, above: bool = False) -> tuple[Callable[[Any], bool], str]:
    def holds(value: Any) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
        return is_number and (low < value if above else low <= value) and value <= high

    rule = f"a number {'above' if above else 'of at least'} {low:g}"
    return holds, rule if math.isinf(high) else f"{rule} and at most {high:g}"


def _choice(*names: str, optional: bool = False) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in names or (optional and value is None), f"one of {', '.join(names)}"


_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "epochs": _whole(1),
    "max_steps": _whole(1, optional=True),
    "lr": _number(0, above=True),
    "weight_decay": _number(0),
    "schedule": _choice(*SCHEDULES),
    "warmup": _number(0, 1),
    "max_grad_norm": _number(0),
    "accumulation": _whole(1),
    "mixed_precision": _choice(*PRECISIONS, optional=True),
    "seed": _whole(0),
    "eval_steps": _whole(1, optional=True),
    "patience": _whole(1, optional=True),
    "save_steps": _whole(1, optional=True),
    "ranges": _choice(*RANGES),
    "scale_lr": _number(0),
    "momentum": _number(0, 1, above=True),
    "freeze_ranges": _number(0, 1),
    "activations_from": _number(0, 1),
    "weights_from": _number(0, 1),
}
