"""The statistics of all slots of a model: attach collectors, capture their state, and restore it."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from calibration.batches import DataCount
from calibration.resume_file import damaged
from calibration.statistics.range_growth import RangeGrowth
from qdq.errors import CalibrationError
from qdq.models.ops import MatMul
from qdq.quantization.wrap import named_slots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor, nn

    from calibration.methods.method import Method
    from calibration.resume_file import StageProgress
    from calibration.statistics.collectors import Collector
    from calibration.statistics.token_mask import TokenMask
    from qdq.quantization.quantizer import Quantizer
    from qdq.quantization.slot import Slot

__all__ = ["SlotStatistics", "capture_statistics", "collect_from", "restore_statistics"]

_RISES = "rises"


@dataclass
class SlotStatistics:
    """The statistics of one activation quantizer.

    Args:
        name: The first slot that the quantizer serves.
        quantizer: The quantizer.
        collector: What gathers the statistics.
        growth: When the range grew.
    """

    name: str
    quantizer: Quantizer
    collector: Collector
    growth: RangeGrowth = field(default_factory=RangeGrowth)


def collect_from(model: nn.Module, method: Method, masks: Mapping[bool, TokenMask]) -> list[SlotStatistics]:
    """Return a collector for every activation quantizer of a model, in the order of its modules.

    Args:
        model: A wrapped model.
        method: The method, which says what it wants to have collected.
        masks: The masks without (False) and with (True) masking of keys.

    Raises:
        CalibrationError: The model is not wrapped.
    """
    found: dict[Quantizer, SlotStatistics] = {}
    for slot, quantizer in named_slots(model):
        # Slots that share a quantizer see the same tensor, so one collector is enough.
        if slot.name != "weight" and quantizer not in found:
            collector = method.collector(masks[_is_over_keys(model, slot)])
            found[quantizer] = SlotStatistics(str(slot), quantizer, collector)
    if not found:
        raise CalibrationError("the model has no quantizers: wrap it first with qdq.quantize(model, recipe)")
    return list(found.values())


def capture_statistics(slots: Iterable[SlotStatistics]) -> Callable[[], dict[str, Tensor]]:
    """Capture the present statistics, cheaply; the tensors are made only when they are needed.

    Returns:
        A function that returns, for each slot, the collector's ``state()`` and ``rises``, float64 ``(n, 2)``.
    """
    # A shallow copy is enough: collectors replace their tensors instead of changing them.
    captured = [(slot.name, copy.copy(slot.collector), list(slot.growth.rises)) for slot in slots]

    def tensors() -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        for name, collector, rises in captured:
            found |= {f"{name}/{key}": tensor for key, tensor in collector.state().items()}
            found[f"{name}/{_RISES}"] = torch.tensor(rises, dtype=torch.float64).reshape(-1, 2)
        return found

    return tensors


def restore_statistics(slots: Iterable[SlotStatistics], progress: StageProgress) -> DataCount:
    """Give new collectors the statistics of an interrupted run, and return the data that they are from.

    Raises:
        CalibrationError: Something is missing or of another shape.
    """
    try:
        done = DataCount(**progress.data_count)
        for slot in slots:
            state = {name: progress.tensors[f"{slot.name}/{name}"] for name in slot.collector.state()}
            _check(state, slot.collector.state())
            slot.collector.merge(state)
            rises = progress.tensors[f"{slot.name}/{_RISES}"].reshape(-1, 2).tolist()
            slot.growth.rises = [(int(samples), amax) for samples, amax in rises]
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise damaged(progress, error) from error
    return done


def _is_over_keys(model: nn.Module, slot: Slot) -> bool:
    """Return whether the last axis of a slot's tensor is positions, as in attention weights."""
    module = model.get_submodule(slot.module)
    return isinstance(module, MatMul) and not module.transpose_other and slot.name == "input"


def _check(state: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name, tensor in expected.items():
        if (state[name].dtype, state[name].shape) != (tensor.dtype, tensor.shape):
            raise ValueError(f"{name} is of another type or shape")
