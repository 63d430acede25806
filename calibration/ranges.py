"""Run sample data through a wrapped model and set its ranges."""

from __future__ import annotations

import json
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from calibration.batches import DataCount, eval_mode, run_batches
from calibration.clipping_harm import OutputCheck
from calibration.digests import model_digest, slots_digest
from calibration.distributed import SINGLE_PROCESS
from calibration.methods.auto import Auto
from calibration.methods.method import Max
from calibration.methods.noise import share_outside
from calibration.range_warnings import (
    float8_warnings,
    growth_warnings,
    harm_warnings,
    sample_size_warnings,
    saturation_warnings,
)
from calibration.statistics.collectors import HistogramCollector
from calibration.statistics.slot_statistics import capture_statistics, collect_from, restore_statistics
from calibration.statistics.statistics_file import SavedStatistics, merge_statistics
from calibration.statistics.token_mask import TokenMask
from qdq.errors import CalibrationError, describe_problems
from qdq.quantization.quantizer import Mode, quantizers, set_mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from torch import Tensor, nn

    from calibration.clipping_harm import Harm
    from calibration.distributed import ProcessRank
    from calibration.methods.method import Method
    from calibration.resume_file import ResumeFile
    from calibration.statistics.slot_statistics import SlotStatistics
    from qdq.quantization.quantizer import Range

__all__ = ["CalibrationSummary", "calibrate", "find_ranges", "judged"]

_STAGE = "ranges"


@dataclass(frozen=True)
class CalibrationSummary:
    """What a calibration saw and did; it is stored with the checkpoint.

    Args:
        method: The name and the settings of the method.
        batches: The number of batches.
        samples: The number of rows in them.
        tokens: The number of positions that the attention mask does not exclude.
        data_sha256: A digest of the token ids that were seen, row by row without padding. It does not depend on how the
            rows were cut into batches.
        saturated: For methods that clip, the share of values beyond the range of each slot; 0.001 is one in a thousand.
            Slots that lose nothing are left out.
        choices: For the method ``auto``, what was chosen for each slot, and why.
        warnings: Why the ranges may not be trusted, with figures.
        refinement: The refinements of :func:`calibration.calibrate_and_refine`, and the amount of data they used.
        added: The number of samples of other runs whose statistics were added.
        harm: How far outputs are from those of the float model, if that is worth a warning; see
            :mod:`calibration.clipping_harm`.
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
    harm: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; ``saturated`` and the fields after it are left out if they are empty."""
        optional = ("saturated", "choices", "warnings", "refinement", "added", "harm")
        return {name: value for name, value in vars(self).items() if value or name not in optional}


def calibrate(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    method: Method | None = None,
    progress: Callable[[int], None] | None = None,
    process: ProcessRank = SINGLE_PROCESS,
    resume_file: ResumeFile | None = None,
    statistics: Sequence[SavedStatistics] = (),
    save_statistics: Path | None = None,
) -> CalibrationSummary:
    """Find the range of every activation slot, and switch the model to quantize.

    Slots that stay float are observed too, so that the checkpoint can be exported with another recipe later. Memory
    does not grow with the number of batches. Positions that ``attention_mask`` excludes never count.

    Args:
        model: A model wrapped by ``qdq.quantize``. It runs in eval mode, without gradients.
        batches: Keyword arguments of the model, tensors ``(batch, seq)``. Lengths may differ between batches.
        method: The method that chooses the ranges; None for :class:`calibration.Max`.
        progress: Called with the number of batches done.
        process: Which of several processes this is, if they share the work; see :mod:`calibration.distributed`. All are
            given the same batches, and end with the ranges that one process would find, equal to the bit.
        resume_file: Keeps the statistics on disk. If it holds those of an interrupted run, the calibration continues
            from there and ends with the same ranges to the bit. The caller removes it when the ranges are safe.
        statistics: Statistics that other runs of the same model, recipe and method saved, on other data. The ranges are
            then those of one run over all the data, equal to the bit.
        save_statistics: A file to write the statistics to, with those that were added, for other runs.

    Raises:
        CalibrationError: There is no data, a slot with a spec saw none, values are NaN or infinite, or the resume file
            or the statistics belong to another model, recipe, method or data. The modes and ranges of the model are
            then what they were before, as after any other exception.
    """
    summary, check = find_ranges(
        model,
        batches,
        method=method,
        progress=progress,
        process=process,
        resume_file=resume_file,
        statistics=statistics,
        save_statistics=save_statistics,
    )
    return judged(summary, check.judge(model))


def judged(summary: CalibrationSummary, harm: Harm | None) -> CalibrationSummary:
    """Return a summary with the warnings that follow from the outputs of the calibrated model.

    Where outputs cannot be compared, what ranges clip is judged by its share.
    """
    name = summary.method["name"]
    found = saturation_warnings(summary.saturated, name) if harm is None else harm_warnings(harm, name)
    record = harm.to_dict() if harm is not None and harm.is_notable else {}
    return replace(summary, warnings=[*summary.warnings, *found], harm=record)


def find_ranges(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    method: Method | None = None,
    progress: Callable[[int], None] | None = None,
    process: ProcessRank = SINGLE_PROCESS,
    resume_file: ResumeFile | None = None,
    statistics: Sequence[SavedStatistics] = (),
    save_statistics: Path | None = None,
) -> tuple[CalibrationSummary, OutputCheck]:
    """Do what :func:`calibrate` does, but leave the last comparison with the float model to the caller.

    Returns:
        The summary, and a check for :func:`judged` that has compared the ranges already.
    """
    method = method or Max()
    check = OutputCheck()
    # One mask for the operands whose last axis is positions, and one for all other tensors.
    masks = {keys: TokenMask(keys=keys) for keys in (False, True)}
    slots = collect_from(model, method, masks)
    modes = {quantizer: quantizer.mode for _, quantizer in quantizers(model)}

    def after_batch(count: DataCount) -> None:
        _check_finite(slots, count)
        for slot in slots:
            slot.growth.note(count.samples, slot.collector.amax)
        if resume_file is not None:
            resume_file.keep(_STAGE, vars(count), capture_statistics(slots))
        if progress is not None:
            progress(count.batches)

    def run_own() -> DataCount:
        done = None
        if resume_file is not None:
            interrupted = resume_file.begin(_STAGE, _identity(model, method))
            done = None if interrupted is None else restore_statistics(slots, interrupted)
        return run_batches(model, check.keeping(batches), tuple(masks.values()), after_batch, process, done)

    try:
        for slot in slots:
            slot.quantizer.observer = slot.collector
        set_mode(model, Mode.COLLECT)
        with eval_mode(model), nullcontext() if resume_file is None else resume_file.guard():
            count = _run_and_merge(run_own, slots, process, resume_file)
            added = 0
            if statistics or save_statistics is not None:  # The digest of all weights takes a while.
                identity = _identity(model, method)
                path = save_statistics if process.rank == 0 else None
                added = _add_statistics(slots, count, identity, statistics, path)
            ranges, choices = _choose_ranges(slots, method)
    except BaseException:
        # Ranges are set only after this block, so restoring the modes leaves the model unchanged.
        for quantizer, mode in modes.items():
            quantizer.mode = mode
        raise
    finally:
        for slot in slots:
            slot.quantizer.observer = None
    if resume_file is not None:
        resume_file.flush()
    _set_ranges(slots, ranges)
    set_mode(model, Mode.QUANTIZE)
    check.compare_ranges(model, slots)
    saturated = _saturated_shares(slots)
    summary = CalibrationSummary(
        method=method.to_dict(),
        **vars(count),
        added=added,
        saturated=saturated,
        choices=choices,
        warnings=_warnings(slots, count, method),
    )
    return summary, check


def _identity(model: nn.Module, method: Method) -> dict[str, str]:
    """Return what statistics belong to."""
    return {"model": model_digest(model), "slots": slots_digest(model), "method": json.dumps(method.to_dict())}


def _run_and_merge(
    run_own: Callable[[], DataCount],
    slots: Sequence[SlotStatistics],
    process: ProcessRank,
    resume_file: ResumeFile | None,
) -> DataCount:
    """Run the batches of this process, and merge the statistics of the other processes."""

    def collected() -> dict[str, Any]:
        if resume_file is not None:
            resume_file.flush()  # Waiting for the other processes may take long or fail.
        return {slot.name: (slot.collector.state(), slot.growth.rises) for slot in slots}

    count, others = process.run_and_exchange(run_own, collected)
    for other in others.values():
        for slot in slots:
            state, rises = other[slot.name]
            slot.collector.merge(state)
            slot.growth.merge(rises)
    return count


def _add_statistics(
    slots: Sequence[SlotStatistics],
    count: DataCount,
    identity: Mapping[str, str],
    statistics: Sequence[SavedStatistics],
    path: Path | None,
) -> int:
    """Add the statistics of other runs, save the sum to ``path``, and return the number of samples that were added."""
    kind = "histogram" if isinstance(slots[0].collector, HistogramCollector) else "min-max"
    states = {slot.name: slot.collector.state() for slot in slots}
    total = merge_statistics([SavedStatistics(identity, kind, count.samples, count.tokens, states), *statistics])
    for other in statistics:
        for slot in slots:
            slot.collector.merge(other.slots[slot.name])
    if path is not None:
        total.save(path)
    return total.samples - count.samples


def _check_finite(slots: Iterable[SlotStatistics], count: DataCount) -> None:
    """Raise if values are NaN or infinite; called after each batch, so that the message can name the batch."""
    problems = [
        f"{slot.name} saw NaN or infinite values in batch {count.batches - 1} (the first is 0)"
        for slot in slots
        if slot.quantizer.spec is not None and not slot.collector.is_finite
    ]
    if problems:
        raise CalibrationError(describe_problems("calibration", problems))


def _choose_ranges(
    slots: Iterable[SlotStatistics], method: Method
) -> tuple[dict[str, Range], dict[str, dict[str, Any]]]:
    """Return the range of every slot, and the reasons for it if the method gives some.

    Raises:
        CalibrationError: A slot that needs a range has no usable statistics.
    """
    problems, ranges, choices = [], {}, {}
    for slot in slots:
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


def _set_ranges(slots: Iterable[SlotStatistics], ranges: Mapping[str, Range]) -> None:
    for slot in slots:
        if slot.name in ranges:
            slot.quantizer.set_range(ranges[slot.name])
        else:
            slot.quantizer.range = None  # A slot that stays float saw no data; an older range would be out of date.


def _saturated_shares(slots: Iterable[SlotStatistics]) -> dict[str, float]:
    """Return the share of values beyond the range, for each slot that has some and a histogram to count them with."""
    shares = {}
    for slot in slots:
        spec, range_ = slot.quantizer.spec, slot.quantizer.range
        if isinstance(slot.collector, HistogramCollector) and spec is not None and not spec.dynamic and range_:
            # Three digits are enough for people and keep the stored record short.
            shares[slot.name] = float(f"{share_outside(slot.collector, range_, symmetric=spec.symmetric):.3g}")
    return {name: share for name, share in shares.items() if share}


def _warnings(slots: Iterable[SlotStatistics], count: DataCount, method: Method) -> list[str]:
    warnings = sample_size_warnings(count.samples, count.tokens)
    warnings += growth_warnings({slot.name: slot.growth.at_the_end(count.samples) for slot in slots})
    if method.name == "entropy":
        float8 = [slot.name for slot in slots if slot.quantizer.spec is not None and slot.quantizer.spec.is_float8]
        warnings += float8_warnings("--calibrator entropy", float8)
    return warnings
