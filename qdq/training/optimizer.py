"""AdamW, with what each kind of parameter needs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qdq.errors import ConfigError
from qdq.quantization.quantizer import quantizers
from qdq.training.schedule import factor, steps_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LambdaLR

    from qdq.training.settings import TrainingSettings

__all__ = ["Group", "groups", "make_optimizer", "make_scheduler", "parameters_of"]

_WRAPPERS = ("module", "_fsdp_wrapped_module", "_orig_mod", "_checkpoint_wrapped_module")


@dataclass(frozen=True)
class Group:
    """Parameters that are treated alike.

    Args:
        names: of the parameters, each of them once, whatever shares it.
        lr: the highest learning rate.
        weight_decay: of AdamW.
        is_scales: whether they are scales of quantizers.
    """

    names: tuple[str, ...]
    lr: float
    weight_decay: float
    is_scales: bool = False


def groups(model: nn.Module, settings: TrainingSettings) -> list[Group]:
    """All parameters that are trained: (1) matrices, which decay, (2) vectors, (3) scales by their size.

    AdamW moves every value by about its learning rate, however small the gradient; a scale of 0.001 needs smaller steps
    than one of 0.1. So scales of one size, to a power of two, have a group with a learning rate of that size.

    Raises:
        ConfigError: nothing is left to train.
    """
    scales = {id(q.scale) for _, q in quantizers(model) if q.spec is not None and q.spec.learned_scale}
    weights: dict[bool, list[str]] = {True: [], False: []}
    sizes: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in scales:
            sizes.setdefault(round(math.log2(float(parameter.detach().abs().mean()))), []).append(name)
        else:
            weights[parameter.dim() > 1].append(name)
    found = [
        Group(tuple(names), settings.lr, settings.weight_decay if decays else 0.0)
        for decays, names in weights.items()
        if names
    ]
    if not found:
        raise ConfigError("no parameter of the model requires a gradient: there is nothing to train")
    scaled = [
        Group(tuple(names), settings.scale_lr * 2.0**n, 0.0, is_scales=True) for n, names in sorted(sizes.items())
    ]
    return found + scaled


def parameters_of(wrapped: nn.Module, found: list[Group]) -> list[list[nn.Parameter]]:
    """The parameters of each group in a model that accelerate has wrapped, which gives them longer names."""
    by_name = {_plain(name): parameter for name, parameter in wrapped.named_parameters()}
    return [[by_name[name] for name in group.names if name in by_name] for group in found]


def make_optimizer(found: list[Group], parameters: list[list[nn.Parameter]]) -> torch.optim.AdamW:
    """AdamW for the groups, in one kernel where the device has it."""
    fused = all(p.device.type in {"cpu", "cuda"} for group in parameters for p in group)
    options = [
        {"params": own, "lr": group.lr, "weight_decay": group.weight_decay}
        for group, own in zip(found, parameters, strict=True)
    ]
    return torch.optim.AdamW(options, fused=fused)


def _plain(name: str) -> str:
    """A name as the model itself has it, without what wrappers put in."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def make_scheduler(optimizer: Optimizer, found: list[Group], total: int, settings: TrainingSettings) -> LambdaLR:
    """The learning rates over ``total`` steps; that of scales is 0 from where they are frozen."""
    frozen = steps_of(settings.freeze_ranges, total)
    warmup = steps_of(settings.warmup, total)

    def rate(*, is_scales: bool) -> Callable[[int], float]:
        def of(step: int) -> float:
            if is_scales and step >= frozen:
                return 0.0
            return factor(step, total, schedule=settings.schedule, warmup=warmup)

        return of

    rates: list[Any] = [rate(is_scales=group.is_scales) for group in found]
    return torch.optim.lr_scheduler.LambdaLR(optimizer, rates)
