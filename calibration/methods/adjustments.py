"""Changes to ranges after calibration: what NVIDIA's quantization trainer offers for BERT.

Each function changes the quantizers of a wrapped model in place and returns the slots that it changed. Ranges of slots
that stay float are changed, too: another recipe may use them later. Slots without a range yet are left alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qdq.errors import CalibrationError
from qdq.quantization.modules.weight import set_weight_scale, weight_range
from qdq.quantization.quantizer import Range
from qdq.quantization.spec import PerTensor
from qdq.quantization.wrap import named_slots

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import nn

    from qdq.quantization.quantizer import Quantizer
    from qdq.quantization.slot import Slot

__all__ = ["check_bound", "clip_gelu", "fuse_qkv", "recalibrate_weights"]

_QKV = (("query", "weight"), ("key", "weight"), ("value", "weight"))
_PRODUCTS = (("scores", "input"), ("scores", "other"), ("context", "other"))


def fuse_qkv(model: nn.Module) -> list[Slot]:
    """One range for query, key and value in each attention: the largest of the three.

    1. Of what the products read: ``scores.input``, ``scores.other`` and ``context.other``.
    2. Of the weights of the three projections, where they are quantized per tensor, all three.

    Scales per tensor are then equal, so that the three projections can run as one product.
    """
    known = dict(named_slots(model))
    by_name = {(slot.module, slot.name): slot for slot in known}
    changed: list[Slot] = []
    for attention in dict.fromkeys(slot.module.rpartition(".")[0] for slot in known):
        for places in (_PRODUCTS, _QKV):
            slots = [by_name.get((f"{attention}.{child}", name)) for child, name in places]
            group = {slot: known[slot] for slot in slots if slot is not None}
            ranges = [_range(model, slot, quantizer) for slot, quantizer in group.items()]
            found = [range_ for range_ in ranges if range_ is not None]
            if len(found) == len(places):
                fused = _widest(found)
                for quantizer in group.values():
                    quantizer.set_range(fused)
                changed += group
    return changed


def _range(model: nn.Module, slot: Slot, quantizer: Quantizer) -> Range | None:
    """What calibration found; of a weight, what it needs for one scale if it is to have one."""
    if slot.name != "weight":
        return quantizer.range
    if quantizer.spec is None or not isinstance(quantizer.spec.granularity, PerTensor):
        return None
    return weight_range(_weight(model, slot), quantizer.spec)


def _widest(ranges: Sequence[Range]) -> Range:
    lower, upper, amax = (torch.stack([getattr(r, name) for r in ranges]) for name in ("lower", "upper", "amax"))
    return Range(lower.amin(0), upper.amax(0), amax.amax(0))


def _weight(model: nn.Module, slot: Slot) -> Tensor:
    weight = model.get_submodule(slot.module).weight
    assert isinstance(weight, Tensor)
    return weight


def clip_gelu(model: nn.Module, bound: float) -> list[Slot]:
    """At most ``bound`` for the range of what the activation puts out: ``feed_forward.down.input`` of each layer.

    Few values are that large, and without them the steps of all others are finer. 10 is usual.

    Raises:
        CalibrationError: for a bound that is not a positive number.
    """
    check_bound(bound)
    changed = []
    for slot, quantizer in named_slots(model):
        range_ = quantizer.range
        if slot.module.endswith("feed_forward.down") and slot.name == "input" and range_ is not None:
            quantizer.set_range(
                Range(range_.lower.clamp(min=-bound), range_.upper.clamp(max=bound), range_.amax.clamp(max=bound))
            )
            changed.append(slot)
    return changed


def check_bound(bound: float) -> None:
    """Refuse a bound for :func:`clip_gelu` before there is anything to clip.

    Raises:
        CalibrationError: for a bound that is not a positive number.
    """
    if not (math.isfinite(bound) and bound > 0):
        raise CalibrationError(f"the bound after GELU is {bound}, must be a positive number")


def recalibrate_weights(model: nn.Module) -> list[Slot]:
    """The scales of quantized weights anew from the weights as they are now, as each spec says.

    For weights that were trained, loaded or changed after they got their scales.

    Raises:
        CalibrationError: when weights are NaN or infinite.
    """
    changed, done = [], set()
    for slot, quantizer in named_slots(model):
        if slot.name == "weight" and quantizer.spec is not None and not quantizer.spec.dynamic:
            if quantizer not in done:
                set_weight_scale(quantizer, _weight(model, slot))
                done.add(quantizer)
            changed.append(slot)
    return changed
