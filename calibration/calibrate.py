"""Run sample data through a wrapped model and set its ranges."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from calibration.collectors import Collector, TokenMask
from calibration.methods import Max, Method
from qdq.errors import CalibrationError, describe_faults
from qdq.models.ops import MatMul
from qdq.prepare import named_slots
from qdq.quantizer import Mode, Quantizer, quantizers, set_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from torch import Tensor, nn

    from qdq.recipe import Slot

__all__ = ["CalibrationSummary", "calibrate"]


@dataclass(frozen=True)
class CalibrationSummary:
    """What a run saw and did; stored with the checkpoint.

    Args:
        method: name and settings.
        batches: number of batches.
        samples: number of rows in them.
        tokens: number of positions that the attention mask does not exclude.
        data_sha256: digest of the token ids that were seen, row by row without padding: equal for equal data, however
            it was cut into batches.
    """

    method: dict[str, Any]
    batches: int
    samples: int
    tokens: int
    data_sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return vars(self).copy()


def calibrate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    method: Method | None = None,
    progress: Callable[[int], None] | None = None,
) -> CalibrationSummary:
    """Find the range of every activation slot and switch the model to quantize.

    Slots that stay float are observed too, so that the checkpoint can be exported with another recipe later. Memory
    does not grow with the number of batches, and positions that ``attention_mask`` excludes never count.

    Args:
        model: wrapped by ``qdq.quantize``; it is run in eval mode, without gradients.
        batches: keyword arguments of the model, tensors ``(batch, seq)``; lengths may differ from batch to batch.
        method: :class:`calibration.Max` when None.
        progress: called with the number of batches done.

    Raises:
        CalibrationError: when there is no data, a slot with a spec saw none, or values are NaN or infinite. Modes and
            ranges of the model are then what they were, as after any other exception.
    """
    method = method or Max()
    masks = {keys: TokenMask(keys=keys) for keys in (False, True)}
    observed: dict[Quantizer, tuple[str, Collector]] = {}
    for slot, quantizer in named_slots(model):
        if slot.name != "weight" and quantizer not in observed:
            observed[quantizer] = (str(slot), method.collector(masks[_is_over_keys(model, slot)]))
    if not observed:
        raise CalibrationError("the model has no quantizers: wrap it first with qdq.quantize(model, recipe)")
    modes = {quantizer: quantizer.mode for _, quantizer in quantizers(model)}
    training = {module: module.training for module in model.modules()}
    try:
        for quantizer, (_, collector) in observed.items():
            quantizer.observer = collector
        set_mode(model, Mode.COLLECT)
        seen = _run(model.eval(), batches, tuple(masks.values()), progress)
        _set_ranges(observed, method)
    except BaseException:
        for quantizer, mode in modes.items():
            quantizer.mode = mode
        raise
    finally:
        for module, flag in training.items():
            module.training = flag
        for quantizer in observed:
            quantizer.observer = None
    set_mode(model, Mode.QUANTIZE)
    return CalibrationSummary(method=method.to_dict(), **seen)


def _is_over_keys(model: nn.Module, slot: Slot) -> bool:
    """Whether the last axis of a slot's tensor is positions: the first operand of a product that sums over them."""
    module = model.get_submodule(slot.module)
    return isinstance(module, MatMul) and not module.transpose_other and slot.name == "input"


def _run(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    masks: Sequence[TokenMask],
    progress: Callable[[int], None] | None,
) -> dict[str, Any]:
    device = next(model.parameters()).device
    parameters = inspect.signature(model.forward).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    digest = hashlib.sha256()
    done = samples = tokens = 0
    with torch.inference_mode():
        for batch in batches:
            if not batch:
                raise CalibrationError(f"batch {done} is empty")
            unknown = [name for name in batch if name not in parameters]
            if unknown and not takes_all:
                raise CalibrationError(f"batch {done}: the model takes no {', '.join(unknown)}")
            inputs = {name: value.to(device) for name, value in batch.items()}
            attention_mask = inputs.get("attention_mask")
            for mask in masks:
                mask.set(attention_mask)
            model(**inputs)
            rows = next(iter(batch.values()))
            samples += rows.shape[0]
            tokens += int(rows.numel() if attention_mask is None else (attention_mask != 0).sum())
            for index, row in enumerate(batch.get("input_ids", ())):
                kept = row if attention_mask is None else row[attention_mask[index].to(row.device) != 0]
                digest.update(kept.cpu().contiguous().numpy().tobytes() + b"|")
            done += 1
            if progress is not None:
                progress(done)
    if not done:
        raise CalibrationError("no data: the calibration set has no batch")
    return {"batches": done, "samples": samples, "tokens": tokens, "data_sha256": digest.hexdigest()}


def _set_ranges(observed: Mapping[Quantizer, tuple[str, Collector]], method: Method) -> None:
    """All ranges, or none when one of them cannot be."""
    faults = []
    ranges = {}
    for quantizer, (name, collector) in observed.items():
        range_ = method.range(collector) if collector.count else None
        if range_ is None:
            fault = f"{name} saw no data"
        elif not bool(torch.isfinite(torch.stack([range_.lower, range_.upper, range_.amax])).all()):
            fault = f"{name} saw NaN or infinite values"
        else:
            ranges[quantizer] = range_
            continue
        if quantizer.spec is not None:
            faults.append(fault)
    if faults:
        raise CalibrationError(describe_faults("calibration", faults))
    for quantizer in observed:
        if quantizer in ranges:
            quantizer.set_range(ranges[quantizer])
        else:
            quantizer.range = None  # of a slot that stays float; what an earlier run found is out of date
