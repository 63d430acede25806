"""The proof by segment: pieces fed with the checkpoint's integers, and what they find added up."""

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
"""Largest difference of float tensors, relative to the largest magnitude, between two implementations in float32."""

_HALF_STEP = {"fp16": 2.0**-11, "bf16": 2.0**-8}

_HALF_ROUNDINGS = 8
"""How many roundings to half precision, each of the size of the largest value, may stand between two quantizers."""

_HALF_TOLERANCE = {"fp16": 0.02, "bf16": 0.1}  # of outputs, behind whole models perhaps


class SegmentTotals:
    """Adds up the segments over the batches."""

    def __init__(self, dtype: str = "fp32") -> None:
        self._rows: dict[str, Segment] = {}
        self._power: dict[str, list[float]] = {}  # of signal and difference
        self._gains: dict[str, ScaleRatio] = {}
        self._rounding = _HALF_STEP.get(dtype, 0.0) * _HALF_ROUNDINGS
        self._tolerance = _HALF_TOLERANCE.get(dtype, FLOAT_TOLERANCE)

    def add_integers(self, name: str, record: RecordedTensor, integers: np.ndarray) -> None:
        """Compare the ``integers`` that a piece found with those of torch; a tie is not wrong."""
        expected = record.integers
        difference = np.abs(expected - integers)
        off = ~(difference == 0)  # NaN is wrong
        # Near enough to what torch rounded, so that a difference within the zone explains it.
        tie = off & record.near(integers, self._rounding)
        wrong = int((off & ~tie).sum())
        largest = float(difference.max(initial=0))
        row = Segment(name, difference.size, int(tie.sum()), wrong, largest, "steps")
        self._add(row, expected, difference)
        if self._rounding:
            self._gains.setdefault(name, ScaleRatio()).add(expected, integers)

    def add_floats(self, name: str, expected: np.ndarray, actual: np.ndarray) -> None:
        """Compare floats relative to the largest magnitude, whole numbers by value."""
        expected, actual = to_float32(expected), to_float32(actual)
        if expected.dtype.kind in "iu":
            difference = np.abs(expected - actual)
            # What a label is can hang on the last digit of half precision, whose logits are not outputs.
            wrong = 0 if self._rounding else int((difference != 0).sum())
            row = Segment(name, difference.size, 0, wrong, float(difference.max(initial=0)), "by value")
            self._add(row, expected, difference)
            return
        amax = max(float(np.abs(expected).max(initial=0)), float(np.finfo(np.float32).tiny))
        difference = np.abs(expected - actual) / amax
        wrong = int((~(difference <= self._tolerance)).sum())  # NaN is wrong
        largest = float(difference.max(initial=0))
        row = Segment(name, difference.size, 0, wrong, largest, "of the largest magnitude")
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
        )

    def segments(self) -> list[Segment]:
        """In the order of the graph."""
        off = {name: gain.ratio for name, gain in self._gains.items() if not gain.is_explained}
        return [replace(row, gain=off.get(row.name, 1.0)) for row in self._rows.values()]

    def problems(self) -> list[str]:
        """The segments that do not hold, in the order of the graph."""
        problems = []
        for row in self.segments():
            if row.wrong:
                problems.append(
                    f"{row.name}: {row.wrong} of {row.values} values are wrong, by up to {row.largest:.3g} {row.unit}"
                )
            elif not row.holds:
                problems.append(
                    f"{row.name}: the values are {row.gain:.3g} times those of torch, which rounding does not explain"
                )
        return problems


def compare_segments(
    totals: SegmentTotals,
    cuts: Iterable[Cut],
    pieces: Runner,
    model: nn.Module,
    recorded: Mapping[Call, RecordedTensor],
    arrays: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Add up what the pieces find; the integers that they were fed, by name of the graph's input."""
    torch_side = {piece: recorded[call].transposed(piece.perm) for piece, call in calls_of(model, cuts).items()}
    fed: dict[str, np.ndarray] = {}
    for piece, record in torch_side.items():
        if piece.zero_point is None or np.all(piece.zero_point == record.zero_point):
            fed[piece.input] = record.q.astype(piece.dtype, copy=False)
        else:
            fed[piece.input] = (record.integers + np.float32(piece.zero_point)).astype(piece.dtype)
        grid = {"scale": record.scale, "zero_point": record.zero_point.astype(piece.dtype)}
        fed |= {name: grid[part] for part, _, name in piece.computed}
    try:
        found = pieces({**arrays, **fed})
    except DataError as error:
        raise ExportError(str(error)) from error
    for piece, record in torch_side.items():
        grid = {part: found[name].astype(np.float32) for part, name, _ in piece.computed}
        if "scale" in grid:
            totals.add_floats(f"{piece.slot}.scale", record.scale, grid["scale"])
        zero = grid["zero_point"] if piece.zero_point is None else piece.zero_point
        totals.add_integers(piece.slot, record, found[piece.output].astype(np.float32) - zero)
    for name, expected in outputs.items():
        totals.add_floats(name, expected, found[name])
    return fed
