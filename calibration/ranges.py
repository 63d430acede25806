"""Run sample data through a wrapped model and set its ranges."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from calibration.digests import model_digest, slots_digest
from calibration.distributed import WHOLE
from calibration.forward import Seen, in_eval, run
from calibration.methods.auto import Auto
from calibration.methods.method import Max
from calibration.methods.noise import share_outside
from calibration.range_warnings import clipped, growing_ranges, idle_in_float8, too_little_data
from calibration.statistics.collectors import HistogramCollector
from calibration.statistics.growth import Growth
from calibration.statistics.saved import CalibrationState, add_up
from calibration.statistics.slot_tensors import restored, snapshot
from calibration.statistics.token_mask import TokenMask
from qdq.errors import CalibrationError, describe_problems
from qdq.models.ops import MatMul
from qdq.quantization.quantizer import Mode, Quantizer, quantizers, set_mode
from qdq.quantization.wrap import named_slots

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from calibration.distributed import Part
    from calibration.methods.method import Method
    from calibration.resume_file import ResumeFile
    from calibration.statistics.collectors import Collector
    from qdq.quantization.quantizer import Range
    from qdq.quantization.slot import Slot

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
        saturated: of methods that clip, the share of values beyond the range for each slot that has one; 0.001 is one
            in a thousand. Slots without loss are left out.
        choices: of the method auto, what was chosen for each slot, and why.
        warnings: what makes the ranges doubtful, with figures.
        refinement: what :func:`calibration.calibrate_and_refine` did besides, and on how much.
        added: samples besides, whose statistics came from other runs.
    """

    method: dict[str, Any]
    batches: int
    samples: int
    tokens: int
    data_sha256: str
    saturated: dict[str, float] = field(default_factory=dict)
    choices: dict[str, dict[str, Any]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    refinement: dict[str, Any] = field(default_factory=dict)
    added: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; of ``saturated`` and what follows it what is not empty."""
        optional = ("saturated", "choices", "warnings", "refinement", "added")
        return {name: value for name, value in vars(self).items() if value or name not in optional}


_STAGE = "ranges"


@dataclass
class _Watched:
    """A quantizer under observation, by the name of the first slot that it serves."""

    name: str
    quantizer: Quantizer
    collector: Collector
    growth: Growth = field(default_factory=Growth)


def _identity(model: nn.Module, method: Method) -> dict[str, str]:
    return {"model": model_digest(model), "slots": slots_digest(model), "method": json.dumps(method.to_dict())}


def calibrate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    method: Method | None = None,
    progress: Callable[[int], None] | None = None,
    part: Part = WHOLE,
    resume_file: ResumeFile | None = None,
    statistics: Sequence[CalibrationState] = (),
    keep: Path | None = None,
) -> CalibrationSummary:
    """Find the range of every activation slot and switch the model to quantize.

    Slots that stay float are observed too, so that the checkpoint can be exported with another recipe later. Memory
    does not grow with the number of batches, and positions that ``attention_mask`` excludes never count.

    Args:
        model: wrapped by ``qdq.quantize``; it is run in eval mode, without gradients.
        batches: keyword arguments of the model, tensors ``(batch, seq)``; lengths may differ from batch to batch.
        method: :class:`calibration.Max` when None.
        progress: called with the number of batches done.
        part: of several processes that are given the same batches, which of them this one runs; see
            :mod:`calibration.distributed`. All end with the same ranges, those of one process to the bit.
        resume_file: keeps the statistics on disk, and gives those of an interrupted run to go on from, with the same
            ranges to the bit. Who calls removes it when the ranges are safe.
        statistics: what other runs of the same model, recipe and method kept, on other data; the ranges are then those
            of one run over all of it, to the bit.
        keep: file to write the statistics to, with those that were added, for other runs.

    Raises:
        CalibrationError: when there is no data, a slot with a spec saw none, values are NaN or infinite, or the resume
            file or statistics belong to another model, recipe, method or data. Modes and ranges of the model are then
            what they were, as after any other exception.
    """
    method = method or Max()
    masks = {keys: TokenMask(keys=keys) for keys in (False, True)}
    watched = _watch(model, method, masks)
    modes = {quantizer: quantizer.mode for _, quantizer in quantizers(model)}

    def after(seen: Seen) -> None:
        _check_values(watched, seen)
        for slot in watched:
            slot.growth.note(seen.samples, slot.collector.amax)
        if resume_file is not None:
            resume_file.keep(_STAGE, vars(seen), snapshot(watched))
        if progress is not None:
            progress(seen.batches)

    def run_own() -> Seen:
        done = None
        if resume_file is not None:
            entry = resume_file.begin(_STAGE, _identity(model, method))
            done = None if entry is None else restored(watched, entry)
        return run(model, batches, tuple(masks.values()), after, part, done)

    try:
        for slot in watched:
            slot.quantizer.observer = slot.collector
        set_mode(model, Mode.COLLECT)
        with in_eval(model), nullcontext() if resume_file is None else resume_file.guard():
            seen = _run_part(run_own, watched, part, resume_file)
            added = 0
            if statistics or keep is not None:  # the digest of all weights takes its time
                identity = _identity(model, method)
                added = _add(watched, seen, identity, statistics, keep if part.rank == 0 else None)
            ranges, choices = _ranges(watched, method)
    except BaseException:
        for quantizer, mode in modes.items():
            quantizer.mode = mode
        raise
    finally:
        for slot in watched:
            slot.quantizer.observer = None
    if resume_file is not None:
        resume_file.flush()
    for slot in watched:
        if slot.name in ranges:
            slot.quantizer.set_range(ranges[slot.name])
        else:
            slot.quantizer.range = None  # of a slot that stays float; what an earlier run found is out of date
    set_mode(model, Mode.QUANTIZE)
    warnings = too_little_data(seen.samples, seen.tokens)
    warnings += growing_ranges({slot.name: slot.growth.at_the_end(seen.samples) for slot in watched})
    saturated = _saturated(watched)
    warnings += clipped(saturated, method.name)
    if method.name == "entropy":
        float8 = [slot.name for slot in watched if slot.quantizer.spec is not None and slot.quantizer.spec.is_float8]
        warnings += idle_in_float8("--calibrator entropy", float8)
    return CalibrationSummary(
        method=method.to_dict(), **vars(seen), added=added, saturated=saturated, choices=choices, warnings=warnings
    )


def _add(
    watched: Sequence[_Watched],
    seen: Seen,
    identity: Mapping[str, str],
    statistics: Sequence[CalibrationState],
    keep: Path | None,
) -> int:
    """Add other runs' statistics, write down the sum; how many samples were added."""
    kind = "histogram" if isinstance(watched[0].collector, HistogramCollector) else "min-max"
    slots = {slot.name: slot.collector.state() for slot in watched}
    total = add_up([CalibrationState(identity, kind, seen.samples, seen.tokens, slots), *statistics])
    for state in statistics:
        for slot in watched:
            slot.collector.merge(state.slots[slot.name])
    if keep is not None:
        total.save(keep)
    return total.samples - seen.samples


def _run_part(
    run_own: Callable[[], Seen], watched: Sequence[_Watched], part: Part, resume_file: ResumeFile | None
) -> Seen:
    """Run what is for this process, and add what the others saw."""

    def held() -> dict[str, Any]:
        if resume_file is not None:
            resume_file.flush()  # the others may take long, or fail
        return {slot.name: (slot.collector.state(), slot.growth.rises) for slot in watched}

    seen, others = part.together(run_own, held)
    for theirs in others.values():
        for slot in watched:
            state, rises = theirs[slot.name]
            slot.collector.merge(state)
            slot.growth.merge(rises)
    return seen


def _watch(model: nn.Module, method: Method, masks: Mapping[bool, TokenMask]) -> list[_Watched]:
    watched: dict[Quantizer, _Watched] = {}
    for slot, quantizer in named_slots(model):
        if slot.name != "weight" and quantizer not in watched:
            collector = method.collector(masks[_is_over_keys(model, slot)])
            watched[quantizer] = _Watched(str(slot), quantizer, collector)
    if not watched:
        raise CalibrationError("the model has no quantizers: wrap it first with qdq.quantize(model, recipe)")
    return list(watched.values())


def _is_over_keys(model: nn.Module, slot: Slot) -> bool:
    """Whether the last axis of a slot's tensor is positions: the first operand of a product that sums over them."""
    module = model.get_submodule(slot.module)
    return isinstance(module, MatMul) and not module.transpose_other and slot.name == "input"


def _check_values(watched: Iterable[_Watched], seen: Seen) -> None:
    """Refuse to go on with what can only fail in the end, while it is known which batch it came with."""
    problems = [
        f"{slot.name} saw NaN or infinite values in batch {seen.batches - 1} (the first is 0)"
        for slot in watched
        if slot.quantizer.spec is not None and not slot.collector.is_finite
    ]
    if problems:
        raise CalibrationError(describe_problems("calibration", problems))


def _ranges(watched: Iterable[_Watched], method: Method) -> tuple[dict[str, Range], dict[str, dict[str, Any]]]:
    """All ranges and the reasons for them, or an error when a slot that needs one has none."""
    problems, ranges, choices = [], {}, {}
    for slot in watched:
        spec, collector = slot.quantizer.spec, slot.collector
        if collector.count and collector.is_finite:
            if isinstance(method, Auto) and isinstance(collector, HistogramCollector):
                ranges[slot.name], choices[slot.name] = method.choose(collector, spec)
            else:
                ranges[slot.name] = method.range(collector, spec)
        elif spec is not None:
            problems.append(f"{slot.name} saw {'NaN or infinite values' if collector.count else 'no data'}")
    if problems:
        raise CalibrationError(describe_problems("calibration", problems))
    return ranges, choices


def _saturated(watched: Iterable[_Watched]) -> dict[str, float]:
    shares = {}
    for slot in watched:
        spec, range_ = slot.quantizer.spec, slot.quantizer.range
        if isinstance(slot.collector, HistogramCollector) and spec is not None and not spec.dynamic and range_:
            shares[slot.name] = float(f"{share_outside(slot.collector, range_, symmetric=spec.symmetric):.3g}")
    return {name: share for name, share in shares.items() if share}
