"""AdamW and its learning rates for each kind of parameter."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qdq.errors import ConfigError
from qdq.quantization.quantizer import quantizers
from qdq.training.lr_schedule import lr_multiplier, steps_of_share

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

    from qdq.training.settings import TrainingSettings

__all__ = ["ParameterGroup", "make_optimizer", "make_scheduler", "parameter_groups", "parameters_of"]

# What DDP, FSDP, torch.compile and checkpoint wrappers insert into the names of parameters.
_WRAPPERS = ("module", "_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module")


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that are trained alike.

    Args:
        names: Names of the parameters; a shared parameter has one name.
        lr: Highest learning rate.
        weight_decay: Weight decay of AdamW.
        is_scales: Whether they are scales of quantizers.
    """

    names: tuple[str, ...]
    lr: float
    weight_decay: float
    is_scales: bool = False


def parameter_groups(model: nn.Module, settings: TrainingSettings) -> list[ParameterGroup]:
    """Return all parameters that are trained: (1) matrices, which decay, (2) vectors, (3) scales by their size.

    AdamW moves every value by about its learning rate, however small the gradient: a scale of 0.001 needs smaller steps
    than one of 0.1. So scales of the same power of two form a group with a learning rate of that size.

    Raises:
        ConfigError: If no parameter is trained.
    """
    scales = {id(q.scale) for _, q in quantizers(model) if q.spec is not None and q.spec.learned_scale}
    weights: dict[bool, list[str]] = {True: [], False: []}
    sizes: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in scales:
            # A quantizer per channel has many scales: their mean stands for all.
            sizes.setdefault(round(math.log2(float(parameter.detach().abs().mean()))), []).append(name)
        else:
            weights[parameter.dim() > 1].append(name)
    groups = [
        ParameterGroup(tuple(names), settings.highest_lr, settings.weight_decay if decays else 0.0)
        for decays, names in weights.items()
        if names
    ]
    if not groups:
        raise ConfigError("no parameter of the model requires a gradient: there is nothing to train")
    of_scales = [
        ParameterGroup(tuple(names), settings.scale_lr * 2.0**n, 0.0, is_scales=True)
        for n, names in sorted(sizes.items())
    ]
    return groups + of_scales


def parameters_of(wrapped: nn.Module, groups: Sequence[ParameterGroup]) -> list[list[nn.Parameter]]:
    """Return the parameters of each group, found in a model that accelerate wrapped."""
    by_name = {_without_wrappers(name): parameter for name, parameter in wrapped.named_parameters()}
    return [[by_name[name] for name in group.names if name in by_name] for group in groups]


def make_optimizer(groups: Sequence[ParameterGroup], parameters: Sequence[list[nn.Parameter]]) -> torch.optim.AdamW:
    """Return AdamW for the parameters of each group, fused into one kernel where the device supports it."""
    fused = all(p.device.type in {"cpu", "cuda"} for own in parameters for p in own)
    options = [
        {"params": own, "lr": group.lr, "weight_decay": group.weight_decay}
        for group, own in zip(groups, parameters, strict=True)
    ]
    return torch.optim.AdamW(options, fused=fused)


def make_scheduler(
    optimizer: Optimizer, groups: Sequence[ParameterGroup], total: int, settings: TrainingSettings
) -> LambdaLR:
    """Return the scheduler of the learning rates over ``total`` steps; that of frozen scales is 0."""
    frozen = steps_of_share(settings.freeze_ranges, total)
    warmup = steps_of_share(settings.warmup, total)

    def multiplier_of(group: ParameterGroup) -> Callable[[int], float]:
        def multiplier(step: int) -> float:
            if group.is_scales and step >= frozen:
                return 0.0
            return lr_multiplier(step, total, schedule=settings.schedule, warmup=warmup)

        return multiplier

    multipliers: list[Any] = [multiplier_of(group) for group in groups]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, multipliers)


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)
