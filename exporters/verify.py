"""Proof that an exported file computes what the checkpoint computes.

By segment: the graph is cut at its quantizers, every piece is fed torch's own integers, runtime optimizations off; the
integers that come out must be equal, except values that lie within ``TIE`` of a rounding tie, which are counted.

End to end: the file as it is deployed, optimizations on. One flipped step grows through the layers, so file and
checkpoint may differ there; but both must lie equally close to the float model, and close to each other within stated
bounds.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporters.onnx.segments import Cut, CutModel, cut_at_quantizers
from exporters.runners import OnnxRuntimeRunner, OpenVINORunner, Runner
from qdq.errors import DataError, ExportError, MissingPackageError
from qdq.prepare import named_slots
from qdq.quantizer import Mode, Quantizer, quantizers, set_mode
from qdq.spec import PerTensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor, nn

__all__ = ["Bounds", "EndToEnd", "Segment", "Verification", "cosine", "sqnr_db", "verify"]

TIE = 1e-3
"""Width, in quantization steps, of the zone around a tie in which float32 noise may decide the rounding."""

EQUAL_DB = 200.0
"""The SQNR of equal arrays."""

_EXACT_DB = 80.0

FLOAT_TOLERANCE = 1e-4
"""Largest difference of float tensors, relative to the largest magnitude, between two implementations in float32."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What end to end must hold, for every output and every batch.

    A flipped step at one rounding tie in an early layer is amplified by the layers behind it, which leaves the distance
    to the float model as it was. A wrong scale, a missing quantizer or a saturating kernel does not.

    Args:
        sqnr_db: least SQNR of the file against the checkpoint in torch.
        cosine: least cosine of the file against the checkpoint in torch.
        float_loss_db: how far the file's SQNR against the float model may lie below the checkpoint's.
    """

    sqnr_db: float = 10.0
    cosine: float = 0.95
    float_loss_db: float = 1.5


@dataclass(frozen=True)
class Segment:
    """The piece in front of one quantizer, or of one output.

    Args:
        name: of the quantizer's slot, or of the graph's output.
        values: how many were compared.
        ties: how many differ by one step and lie within ``TIE`` of a rounding tie.
        wrong: how many differ otherwise.
        largest: largest difference.
        unit: of ``largest``: ``steps``, or for an output ``of the largest magnitude``.
    """

    name: str
    values: int
    ties: int
    wrong: int
    largest: float
    unit: str


@dataclass(frozen=True)
class EndToEnd:
    """One output of one batch.

    Args:
        output: its name.
        batch_size: of the batch.
        seq_len: of the batch.
        sqnr_db: of the file against the checkpoint in torch.
        cosine: of the file against the checkpoint in torch.
        float_sqnr_db: of the file against the float model.
        float_cosine: of the file against the float model.
        expected_float_sqnr_db: of the checkpoint in torch against the float model.
    """

    output: str
    batch_size: int
    seq_len: int
    sqnr_db: float
    cosine: float
    float_sqnr_db: float
    float_cosine: float
    expected_float_sqnr_db: float


@dataclass(frozen=True)
class Verification:
    """The report of :func:`verify`.

    Args:
        segments: in graph order, all batches added up.
        end_to_end: one for each output and batch.
        bounds: what ``end_to_end`` had to reach.
        runtime: that ran the file end to end.
        faults: what did not hold, in words; empty when all is well.
    """

    segments: list[Segment]
    end_to_end: list[EndToEnd]
    bounds: Bounds
    runtime: str
    faults: list[str] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether everything did."""
        return not self.faults

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which knows no NaN and no infinity: None stands for them."""
        return {"holds": self.holds, **_plain(asdict(self))}


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def verify(
    model: nn.Module,
    path: Path,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    runtime: str = "onnxruntime",
    bounds: Bounds | None = None,
) -> Verification:
    """Compare an ONNX file with the torch model it was exported from.

    Args:
        model: float, or wrapped in mode QUANTIZE; in eval mode.
        path: of ``model.onnx``.
        batches: inputs of several shapes, with padding; int64 tensors ``(batch, seq)``.
        runtime: that runs the file end to end: ``onnxruntime``, ``openvino``, or ``reference``: ONNX Runtime with its
            optimizations off, for files that are meant for a device which is not here.
        bounds: for end to end, :class:`Bounds` when None.

    Returns:
        The report; it does not raise when something does not hold.

    Raises:
        CheckpointError: for a file that cannot be read or is not of ours.
        DataError: for batches that lack an input.
        ExportError: for a runtime that does not exist.
    """
    bounds = bounds or Bounds()
    cut = cut_at_quantizers(path)
    weights = {"session.model_external_initializers_file_folder_path": str(path.parent.resolve())}  # of large models
    pieces = OnnxRuntimeRunner(cut.model, optimize=False, session_config=weights)
    whole, runtime = _runner(path, runtime)
    tally = _Tally()
    rows: list[EndToEnd] = []
    faults = ["nothing was compared: there is no batch"]
    with np.errstate(all="ignore"):  # NaN and infinity are counted, not warned about
        for batch in batches:
            recorded, outputs = _record(model, batch)
            arrays = {name: value.numpy() for name, value in batch.items()}
            try:
                found = whole(arrays)
                faults = _structure_faults(model, cut, recorded, outputs, found)
                if faults:
                    break
                _compare_segments(tally, cut, pieces, model, recorded, arrays, outputs)
            except ExportError as error:
                faults = [f"the file cannot be run with the checkpoint's tensors: {error}"]
                break
            rows += _compare_end_to_end(_float_outputs(model, batch), outputs, found, arrays["attention_mask"])
    faults += tally.faults()
    faults += [fault for row in rows for fault in _end_to_end_faults(row, bounds, runtime)]
    return Verification(tally.segments(), rows, bounds, runtime, faults)


def _structure_faults(
    model: nn.Module,
    cut: CutModel,
    recorded: Mapping[Quantizer, _Record],
    outputs: Mapping[str, np.ndarray],
    found: Mapping[str, np.ndarray],
) -> list[str]:
    """What keeps the file from being compared with the checkpoint piece by piece.

    Case 1: it lacks a quantizer. Two of the checkpoint that read one tensor on one grid may be one in the file.
    Case 2: it has a quantizer that the checkpoint has not.
    Case 3: a quantizer has another zero point; int8 may be held as uint8, shifted by 128.
    Case 4: an output is missing, surplus or of another shape.
    """
    if recorded and not cut.cuts:
        return ["the checkpoint is quantized, but the file has no quantizers"]  # case 1, all of them
    present = {quantizer: piece for piece in cut.cuts if (quantizer := _quantizer(model, piece)) in recorded}
    faults = [
        f"{name}: the checkpoint quantizes here, the file does not"  # case 1
        for name, quantizer in quantizers(model)
        if quantizer in recorded
        and not any(quantizer is other or _is_same(quantizer, other, recorded) for other in present)
    ]
    faults += [
        f"{piece.slot}: the file quantizes here, the checkpoint does not"  # case 2
        for piece in cut.cuts
        if _quantizer(model, piece) not in present
    ]
    for quantizer, piece in present.items():
        assert quantizer is not None
        assert quantizer.spec is not None
        shift = 128 if quantizer.spec.signed and piece.dtype == np.uint8 else 0
        expected = int(recorded[quantizer].zero_point)
        if piece.zero_point is not None and piece.zero_point - shift != expected:  # case 3
            faults.append(
                f"{piece.slot}: the zero point is {piece.zero_point - shift} in the file, {expected} in the checkpoint"
            )
    for name in dict.fromkeys((*outputs, *found)):  # case 4
        ours, theirs = (tuple(side[name].shape) if name in side else None for side in (outputs, found))
        if ours != theirs:
            faults.append(f"{name}: the shape is {theirs} in the file, {ours} in the checkpoint (None: no such output)")
    return faults


def _is_same(one: Quantizer, other: Quantizer | None, recorded: Mapping[Quantizer, _Record]) -> bool:
    """Whether both put the same tensor on the same grid."""
    assert other is not None
    ours, theirs = recorded[one], recorded[other]
    return (
        np.array_equal(ours.scale, theirs.scale)
        and np.array_equal(ours.zero_point, theirs.zero_point)
        and np.array_equal(ours.integers, theirs.integers)
    )


def _compare_end_to_end(
    in_float: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
    attention_mask: np.ndarray,
) -> list[EndToEnd]:
    """A row for every output; of outputs ``(batch, seq, ...)`` the padded positions do not count."""
    rows = []
    batch_size, seq_len = attention_mask.shape
    for name, reference in expected.items():
        padded = reference.shape[:2] == attention_mask.shape
        x, a, b = (y[attention_mask != 0] if padded else y for y in (in_float[name], reference, actual[name]))
        rows.append(
            EndToEnd(
                name,
                batch_size,
                seq_len,
                sqnr_db=sqnr_db(a, b),
                cosine=cosine(a, b),
                float_sqnr_db=sqnr_db(x, b),
                float_cosine=cosine(x, b),
                expected_float_sqnr_db=sqnr_db(x, a),
            )
        )
    return rows


def _end_to_end_faults(row: EndToEnd, bounds: Bounds, runtime: str) -> list[str]:
    """What does not hold; written so that NaN does not hold either."""
    where = f"{row.output} at {row.batch_size}x{row.seq_len} in {runtime}"
    faults = []
    if not (row.sqnr_db >= bounds.sqnr_db and row.cosine >= bounds.cosine):
        faults.append(
            f"{where}: SQNR {row.sqnr_db:.1f} dB and cosine {row.cosine:.4f} to the checkpoint in torch, "
            f"needed {bounds.sqnr_db:.1f} dB and {bounds.cosine:.4f}"
        )
    least = row.expected_float_sqnr_db - bounds.float_loss_db
    # Two float files agree to the last digits: their ratio to one another is noise.
    if row.expected_float_sqnr_db < _EXACT_DB and not row.float_sqnr_db >= least:
        faults.append(
            f"{where}: SQNR {row.float_sqnr_db:.1f} dB to the float model, "
            f"the checkpoint in torch has {row.expected_float_sqnr_db:.1f} dB"
        )
    return faults


def sqnr_db(reference: np.ndarray, actual: np.ndarray) -> float:
    """Signal to quantization-noise ratio in decibels: 10 log10 of the power of the signal over that of the error.

    200 dB, far beyond float32, stands for equal arrays: a number that JSON has.
    """
    with np.errstate(all="ignore"):  # values that are not finite give NaN
        signal = np.square(reference, dtype=np.float64).sum()
        noise = np.square(np.subtract(reference, actual, dtype=np.float64)).sum()
        if noise == 0:
            return EQUAL_DB
        ratio = 10 * np.log10(np.maximum(signal, np.finfo(np.float64).tiny) / noise)
        return float(np.minimum(ratio, EQUAL_DB))  # NaN stays, which min() would lose


def cosine(reference: np.ndarray, actual: np.ndarray) -> float:
    """Mean cosine between the vectors on the last axis."""
    a, b = reference.astype(np.float64), actual.astype(np.float64)
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(np.mean((a * b).sum(axis=-1) / np.maximum(norms, np.finfo(np.float64).tiny)))


def _runner(path: Path, runtime: str) -> tuple[Runner, str]:
    if runtime == "openvino":
        try:
            return OpenVINORunner(path), "openvino"
        except MissingPackageError:
            return OnnxRuntimeRunner(path), "onnxruntime (openvino is not installed)"
    if runtime == "reference":
        return OnnxRuntimeRunner(path, optimize=False), "onnxruntime, optimizations off"
    if runtime != "onnxruntime":
        raise ExportError(f"no runtime {runtime!r} to verify in: it must be one of onnxruntime, openvino, reference")
    return OnnxRuntimeRunner(path), "onnxruntime"


@dataclass(frozen=True)
class _Record:
    """What one quantizer saw: the tensor in steps, its integers counted from the zero point, and the grid."""

    steps: np.ndarray
    integers: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray

    def transposed(self, perm: tuple[int, ...] | None) -> _Record:
        if perm is None:
            return self
        return replace(self, steps=self.steps.transpose(perm), integers=self.integers.transpose(perm))


def _record(model: nn.Module, batch: Mapping[str, Tensor]) -> tuple[dict[Quantizer, _Record], dict[str, np.ndarray]]:
    """Run torch and keep the integers of every quantizer, and the outputs."""
    records: dict[Quantizer, _Record] = {}

    def recorder_of(quantizer: Quantizer) -> Any:
        def record(x: Tensor, q: Tensor) -> None:
            scale, zero_point = quantizer.grid(x)
            arrays = (x.float() / scale, q - zero_point, scale, zero_point)
            records[quantizer] = _Record(*(array.detach().numpy() for array in arrays))

        return record

    # Weights are constants of the file, and a scale per token is computed there in float.
    active = [
        quantizer
        for slot, quantizer in named_slots(model)
        if slot.name != "weight"
        and quantizer.mode is Mode.QUANTIZE
        and quantizer.spec is not None
        and quantizer.spec.granularity == PerTensor()
    ]
    try:
        for quantizer in active:
            quantizer.recorder = recorder_of(quantizer)
        with torch.inference_mode():
            outputs = model(**batch)
    finally:
        for quantizer in active:
            quantizer.recorder = None
    return records, {name: value.numpy() for name, value in outputs.items() if isinstance(value, torch.Tensor)}


def _float_outputs(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The same model with its quantizers off."""
    modes = {quantizer: quantizer.mode for _, quantizer in quantizers(model)}
    try:
        set_mode(model, Mode.OFF)
        with torch.inference_mode():
            outputs = model(**batch)
    finally:
        for quantizer, mode in modes.items():
            quantizer.mode = mode
    return {name: value.numpy() for name, value in outputs.items() if isinstance(value, torch.Tensor)}


def _compare_segments(
    tally: _Tally,
    cut: CutModel,
    pieces: Runner,
    model: nn.Module,
    recorded: Mapping[Quantizer, _Record],
    arrays: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
) -> None:
    torch_side = {
        piece: recorded[quantizer].transposed(piece.perm)
        for piece in cut.cuts
        if (quantizer := _quantizer(model, piece)) is not None
    }
    fed: dict[str, np.ndarray] = {}
    for piece, record in torch_side.items():
        zero = record.zero_point if piece.zero_point is None else piece.zero_point
        fed[piece.input] = (record.integers + zero).astype(piece.dtype)
        grid = {"scale": record.scale, "zero_point": record.zero_point.astype(piece.dtype)}
        fed |= {name: grid[part] for part, _, name in piece.computed}
    try:
        found = pieces({**arrays, **fed})
    except DataError as error:
        raise ExportError(str(error)) from error
    for piece, record in torch_side.items():
        grid = {part: found[name].astype(np.float32) for part, name, _ in piece.computed}
        if "scale" in grid:
            tally.add_floats(f"{piece.slot}.scale", record.scale, grid["scale"])
        zero = grid["zero_point"] if piece.zero_point is None else piece.zero_point
        tally.add_integers(piece.slot, record, found[piece.output].astype(np.float32) - zero)
    for name, expected in outputs.items():
        tally.add_floats(name, expected, found[name])


def _quantizer(model: nn.Module, piece: Cut) -> Quantizer | None:
    """The checkpoint's quantizer of that name, if it has one."""
    try:
        module = model.get_submodule(piece.slot)
    except AttributeError:
        return None
    return module if isinstance(module, Quantizer) else None


class _Tally:
    """Adds up the segments over the batches."""

    def __init__(self) -> None:
        self._rows: dict[str, Segment] = {}

    def add_integers(self, name: str, record: _Record, integers: np.ndarray) -> None:
        difference = np.abs(record.integers - integers)
        off = ~(difference == 0)  # NaN is wrong
        tie = off & (difference <= 1) & (np.abs(np.abs(record.steps % 1) - 0.5) <= TIE)
        wrong = int((off & ~tie).sum())
        largest = float(difference.max(initial=0))
        self._add(Segment(name, difference.size, int(tie.sum()), wrong, largest, "steps"))

    def add_floats(self, name: str, expected: np.ndarray, actual: np.ndarray) -> None:
        amax = max(float(np.abs(expected).max(initial=0)), float(np.finfo(np.float32).tiny))
        difference = np.abs(expected - actual) / amax
        wrong = int((~(difference <= FLOAT_TOLERANCE)).sum())  # NaN is wrong
        largest = float(difference.max(initial=0))
        self._add(Segment(name, difference.size, 0, wrong, largest, "of the largest magnitude"))

    def _add(self, new: Segment) -> None:
        old = self._rows.get(new.name, Segment(new.name, 0, 0, 0, 0.0, new.unit))
        self._rows[new.name] = Segment(
            new.name,
            old.values + new.values,
            old.ties + new.ties,
            old.wrong + new.wrong,
            float(np.maximum(old.largest, new.largest)),  # NaN stays
            new.unit,
        )

    def segments(self) -> list[Segment]:
        return list(self._rows.values())

    def faults(self) -> list[str]:
        """The segments that do not hold, in the order of the graph."""
        return [
            f"{row.name}: {row.wrong} of {row.values} values are wrong, by up to {row.largest:.3g} {row.unit}"
            for row in self._rows.values()
            if row.wrong
        ]
