"""Verify by segment: give each segment the integers of the checkpoint, and compare the integers that it returns."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from exporters.verification.matching import calls_of
from exporters.verification.numpy_conversion import to_float32
from exporters.verification.report import Segment
from exporters.verification.scale_ratio import ScaleRatio
from exporters.verification.similarity import ratio_db
from qdq.errors import DataError, ExportError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

    from exporters.onnx.segments import Cut
    from exporters.runners import Runner
    from exporters.verification.recording import Call, RecordedTensor

__all__ = ["FLOAT_TOLERANCE", "SegmentTotals", "compare_segments"]

FLOAT_TOLERANCE = 1e-4
"""Largest difference between two float32 implementations, relative to the largest magnitude of the tensor."""

_HALF_STEP = {"fp16": 2.0**-11, "bf16": 2.0**-8}

_HALF_ROUNDINGS = 8
"""How many roundings to half precision, each of the size of the largest value, may lie between two quantizers."""

_HALF_TOLERANCE = {"fp16": 0.02, "bf16": 0.1}  # larger, because a whole model may lie before an output


class SegmentTotals:
    """Add up the comparisons of the segments over the batches.

    Args:
        dtype: Type that the file computes in: ``fp32``, ``fp16`` or ``bf16``.
    """

    def __init__(self, dtype: str = "fp32") -> None:
        self._rows: dict[str, Segment] = {}
        self._power: dict[str, list[float]] = {}  # of signal and difference
        self._scale_ratios: dict[str, ScaleRatio] = {}
        self._rounding = _HALF_STEP.get(dtype, 0.0) * _HALF_ROUNDINGS
        self._tolerance = _HALF_TOLERANCE.get(dtype, FLOAT_TOLERANCE)

    def add_integers(self, name: str, record: RecordedTensor, integers: np.ndarray) -> None:
        """Compare the integers that a segment returned with those of torch. A rounding tie is not wrong.

        Args:
            name: Slot of the quantizer.
            record: What the quantizer saw in torch.
            integers: What the segment returned, counted from the zero point.
        """
        expected = record.integers
        difference = np.abs(expected - integers)
        differs = ~(difference == 0)  # this way round, NaN differs
        tie = differs & record.matches(integers, self._rounding)
        wrong = int((differs & ~tie).sum())
        largest = float(difference.max(initial=0))
        noise = float(np.max(record.noise, initial=0))
        row = Segment(name, difference.size, int(tie.sum()), wrong, largest, "steps", tolerance=noise)
        self._add(row, expected, difference)
        if self._rounding:
            self._scale_ratios.setdefault(name, ScaleRatio()).add(expected, integers)

    def add_floats(self, name: str, expected: np.ndarray, actual: np.ndarray) -> None:
        """Compare floats relative to the largest magnitude, integers by value."""
        expected, actual = to_float32(expected), to_float32(actual)
        if expected.dtype.kind in "iu":
            difference = np.abs(expected - actual)
            # In half precision the last digit of the logits may decide a label, and the logits are not there to tell.
            wrong = 0 if self._rounding else int((difference != 0).sum())
            row = Segment(name, difference.size, 0, wrong, float(difference.max(initial=0)), "by value")
            self._add(row, expected, difference)
            return
        amax = max(float(np.abs(expected).max(initial=0)), float(np.finfo(np.float32).tiny))
        difference = np.abs(expected - actual) / amax
        wrong = int((~(difference <= self._tolerance)).sum())  # this way round, NaN is wrong
        largest = float(difference.max(initial=0))
        row = Segment(name, difference.size, 0, wrong, largest, "of the largest magnitude", tolerance=self._tolerance)
        self._add(row, expected / amax, difference)

    def _add(self, new: Segment, signal: np.ndarray, difference: np.ndarray) -> None:
        old = self._rows.get(new.name, Segment(new.name, 0, 0, 0, 0.0, new.unit))
        power = self._power.setdefault(new.name, [0.0, 0.0])
        for index, part in enumerate((signal, difference)):
            power[index] += float(np.square(part, dtype=np.float64).sum())
        self._rows[new.name] = Segment(
            new.name,
            old.values + new.values,
            old.ties + new.ties,
            old.wrong + new.wrong,
            float(np.maximum(old.largest, new.largest)),  # NaN stays
            new.unit,
            ratio_db(*power),
            tolerance=max(old.tolerance, new.tolerance),
        )

    def segments(self) -> list[Segment]:
        """Return the totals of every segment, in graph order."""
        wrong = {name: scale.ratio for name, scale in self._scale_ratios.items() if not scale.is_within_tolerance}
        return [replace(row, scale_ratio=wrong.get(row.name, 1.0)) for row in self._rows.values()]

    def problems(self) -> list[str]:
        """Describe the segments that do not hold, in graph order."""
        problems = []
        for row in self.segments():
            if row.wrong:
                problems.append(
                    f"{row.name}: {row.wrong} of {row.values} values are wrong, by up to {row.largest:.3g} {row.unit}"
                )
            elif not row.holds:
                problems.append(
                    f"{row.name}: the values are {row.scale_ratio:.3g} times those of torch, which rounding does not "
                    "explain"
                )
        return problems


def compare_segments(
    totals: SegmentTotals,
    cuts: Iterable[Cut],
    cut_runner: Runner,
    model: nn.Module,
    recorded: Mapping[Call, RecordedTensor],
    arrays: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Run all segments on one batch and add their comparisons to ``totals``.

    Args:
        totals: The totals to add to.
        cuts: The cuts of the graph.
        cut_runner: Runner of the graph that was cut.
        model: The checkpoint's model.
        recorded: What its quantizers saw.
        arrays: The inputs of the batch.
        outputs: The outputs of the model.

    Returns:
        The integers that each segment was given, by the name of its graph input.

    Raises:
        ExportError: If the file cannot be run with these tensors.
    """
    torch_side = {cut: recorded[call].transposed(cut.perm) for cut, call in calls_of(model, cuts).items()}
    fed: dict[str, np.ndarray] = {}
    for cut, record in torch_side.items():
        # The file may store int8 as uint8, so the integers are shifted to its zero point.
        if cut.zero_point is None or np.all(cut.zero_point == record.zero_point):
            fed[cut.input] = record.q.astype(cut.dtype, copy=False)
        else:
            fed[cut.input] = (record.integers + np.float32(cut.zero_point)).astype(cut.dtype)
        grid = {"scale": record.scale, "zero_point": record.zero_point.astype(cut.dtype)}
        fed |= {name: grid[part] for part, _, name in cut.computed}
    try:
        found = cut_runner({**arrays, **fed})
    except DataError as error:
        raise ExportError(str(error)) from error
    for cut, record in torch_side.items():
        grid = {part: found[name].astype(np.float32) for part, name, _ in cut.computed}
        if "scale" in grid:
            totals.add_floats(f"{cut.slot}.scale", record.scale, grid["scale"])
        zero = grid["zero_point"] if cut.zero_point is None else cut.zero_point
        totals.add_integers(cut.slot, record, found[cut.output].astype(np.float32) - zero)
    for name, expected in outputs.items():
        totals.add_floats(name, expected, found[name])
    return fed
