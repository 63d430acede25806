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
from qdq.prepare import named_slots
from qdq.quantizer import Mode, Quantizer, set_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from torch import Tensor, nn

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
        CalibrationError: when there is no data, a slot with a spec saw none, or values are NaN or infinite. The ranges
            that the model had are then untouched.
    """
    method = method or Max()
    mask = TokenMask()
    observed: dict[Quantizer, tuple[str, Collector]] = {}
    for slot, quantizer in named_slots(model):
        if slot.name != "weight" and quantizer not in observed:
            observed[quantizer] = (str(slot), method.collector(mask))
    if not observed:
        raise CalibrationError("the model has no quantizers: wrap it first with qdq.quantize(model, recipe)")
    modes = {quantizer: quantizer.mode for quantizer in observed}
    training = model.training
    try:
        for quantizer, (_, collector) in observed.items():
            quantizer.observer = collector
        set_mode(model, Mode.COLLECT)
        seen = _run(model.eval(), batches, mask, progress)
    except BaseException:
        for quantizer, mode in modes.items():
            quantizer.mode = mode
        raise
    finally:
        model.train(training)
        for quantizer in observed:
            quantizer.observer = None
    _set_ranges(observed, method)
    set_mode(model, Mode.QUANTIZE)
    return CalibrationSummary(method=method.to_dict(), **seen)


def _run(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    mask: TokenMask,
    progress: Callable[[int], None] | None,
) -> dict[str, Any]:
    device = next(model.parameters()).device
    parameters = inspect.signature(model.forward).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    digest = hashlib.sha256()
    done = samples = tokens = 0
    with torch.inference_mode():
        for batch in batches:
            unknown = [name for name in batch if name not in parameters]
            if unknown and not takes_all:
                raise CalibrationError(f"batch {done}: the model takes no {', '.join(unknown)}")
            inputs = {name: value.to(device) for name, value in batch.items()}
            attention_mask = inputs.get("attention_mask")
            mask.set(attention_mask)
            model(**inputs)
            rows = next(iter(batch.values()))
            samples += rows.shape[0]
            tokens += int(rows.numel() if attention_mask is None else (attention_mask != 0).sum())
            for index, row in enumerate(batch.get("input_ids", ())):
                kept = row if attention_mask is None else row[attention_mask[index].to(row.device) != 0]
                digest.update(kept.contiguous().numpy().tobytes() + b"|")
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
        if not collector.count:
            if quantizer.spec is not None:
                faults.append(f"{name} saw no data")
            continue
        range_ = method.range(collector)
        if bool(torch.isfinite(torch.stack([range_.lower, range_.upper, range_.amax])).all()):
            ranges[quantizer] = range_
        elif quantizer.spec is not None:
            faults.append(f"{name} saw NaN or infinite values")
    if faults:
        raise CalibrationError(describe_faults("calibration", faults))
    for quantizer, range_ in ranges.items():
        quantizer.set_range(range_)
