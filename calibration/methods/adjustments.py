"""Change ranges after calibration, as NVIDIA's quantization trainer for BERT does.

Each function changes the quantizers of a wrapped model in place and returns the slots that it changed. Ranges of slots
that stay float are changed too, because another recipe may use them later. Slots without a range are left alone.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import Tensor

from qdq.errors import CalibrationError
from qdq.quantization.modules.weight import set_weight_scale, weight_range
from qdq.quantization.quantizer import Range
from qdq.quantization.spec import PerTensor
from qdq.quantization.wrap import named_slots

if TYPE_CHECKING:
    from torch import nn

    from qdq.quantization.quantizer import Quantizer
    from qdq.quantization.slot import Slot

__all__ = ["clip_gelu", "fuse_qkv", "recalibrate_weights"]

_QKV = (("query", "weight"), ("key", "weight"), ("value", "weight"))
_PRODUCTS = (("scores", "input"), ("scores", "other"), ("context", "other"))


def fuse_qkv(model: nn.Module) -> list[Slot]:
    """Give query, key and value of each attention one range that covers all three.

    1. The activations that the products read: ``scores.input``, ``scores.other`` and ``context.other``.
    2. The weights of the three projections, if all three are quantized per tensor.

    The scales are then equal, so that a runtime can compute the three projections as one matrix product.

    Args:
        model: A wrapped and calibrated model.

    Returns:
        The slots that were changed.
    """
    known = dict(named_slots(model))
    # Slots are found by their names inside an attention block, which are the same in all families.
    by_name = {(slot.module, slot.name): slot for slot in known}
    changed: list[Slot] = []
    for attention in dict.fromkeys(slot.module.rpartition(".")[0] for slot in known):
        for members in (_PRODUCTS, _QKV):
            slots = [by_name.get((f"{attention}.{child}", name)) for child, name in members]
            group = {slot: known[slot] for slot in slots if slot is not None}
            ranges = [_range(model, slot, quantizer) for slot, quantizer in group.items()]
            found = [range_ for range_ in ranges if range_ is not None]
            if len(found) == len(members):
                fused = Range.covering(found)
                for quantizer in group.values():
                    quantizer.set_range(fused)
                changed += group
    return changed


def _range(model: nn.Module, slot: Slot, quantizer: Quantizer) -> Range | None:
    """Return the range that calibration found; for a weight with one scale, the range of its values."""
    if slot.name != "weight":
        return quantizer.range
    if quantizer.spec is None or not isinstance(quantizer.spec.granularity, PerTensor):
        return None
    return weight_range(_weight(model, slot), quantizer.spec)


def _weight(model: nn.Module, slot: Slot) -> Tensor:
    weight = model.get_submodule(slot.module).weight
    assert isinstance(weight, Tensor)
    return weight


def clip_gelu(model: nn.Module, bound: float) -> list[Slot]:
    """Clip the ranges of GELU outputs, ``feed_forward.down.input`` of each layer, at ``bound``.

    Only a few values are that large, and clipping them gives all others a finer resolution.

    Args:
        model: A wrapped and calibrated model.
        bound: The largest magnitude of the ranges. 10 is usual.

    Returns:
        The slots that were changed.

    Raises:
        CalibrationError: The bound is not a positive number.
    """
    if not (math.isfinite(bound) and bound > 0):
        raise CalibrationError(f"the bound for GELU outputs is {bound}, but must be a positive number")
    changed = []
    for slot, quantizer in named_slots(model):
        range_ = quantizer.range
        if slot.module.endswith("feed_forward.down") and slot.name == "input" and range_ is not None:
            quantizer.set_range(
                Range(range_.lower.clamp(min=-bound), range_.upper.clamp(max=bound), range_.amax.clamp(max=bound))
            )
            changed.append(slot)
    return changed


def recalibrate_weights(model: nn.Module) -> list[Slot]:
    """Compute the scales of quantized weights again, from the present weights.

    Use this for weights that were trained, loaded or changed after they got their scales.

    Args:
        model: A wrapped model.

    Returns:
        The slots of all quantized weights.

    Raises:
        CalibrationError: Weights are NaN or infinite.
    """
    changed, done = [], set()
    for slot, quantizer in named_slots(model):
        if slot.name == "weight" and quantizer.spec is not None and not quantizer.spec.dynamic:
            # A tied weight has several slots but one quantizer.
            if quantizer not in done:
                set_weight_scale(quantizer, _weight(model, slot))
                done.add(quantizer)
            changed.append(slot)
    return changed
