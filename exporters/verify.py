"""Proof that an exported file computes what the checkpoint computes.

By segment: the graph is cut at its quantizers, every piece is fed torch's own integers, runtime optimizations off; the
integers that come out must be equal, except values that lie within ``TIE`` of a rounding tie, which are counted. Half
precision widens that zone by its own rounding.

End to end: the file as it is deployed, optimizations on. One flipped step grows through the layers, so file and
checkpoint may differ there; but both must lie equally close to the float model, and close to each other within stated
bounds.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from exporters.deployed import Deployed, deploy
from exporters.onnx.load import load_onnx
from exporters.onnx.saturation import Saturated, at_risk, saturated_pairs
from exporters.onnx.segments import Cut, CutModel, cut_at_quantizers
from exporters.runners import EvaluatorRunner, OnnxRuntimeRunner, OpenVINORunner, Runner
from qdq.errors import DataError, ExportError, MissingPackageError, describe_faults
from qdq.functional import quantize_float8
from qdq.models.attention import Attention
from qdq.prepare import named_slots
from qdq.quantizer import Mode, Quantizer, quantizers, set_mode
from qdq.spec import FLOAT8_MAX, PerTensor

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from exporters.form import Form

__all__ = ["Bounds", "EndToEnd", "Segment", "Verification", "cosine", "sqnr_db", "verify"]

TIE = 1e-3
"""Width, in quantization steps, of the zone around a tie in which float32 noise may decide the rounding.

Noise grows with the largest value of a tensor, for which int8 has 127 steps, float8 448 of its units.
"""

EQUAL_DB = 200.0
"""The SQNR of equal arrays."""

_EXACT_DB = 80.0
_TWICE_DB = 10 * math.log10(2)

FLOAT_TOLERANCE = 1e-4
"""Largest difference of float tensors, relative to the largest magnitude, between two implementations in float32."""

_HALF_STEP = {"fp16": 2.0**-11, "bf16": 2.0**-8}
_HALF_ROUNDINGS = 8
"""How many roundings to half precision, each of the size of the largest value, may stand between two quantizers."""
_HALF_TOLERANCE = {"fp16": 0.02, "bf16": 0.1}  # of outputs, behind whole models perhaps
_HALF_LOSS_DB = {"fp16": 3.0, "bf16": 6.0}  # two runs in half precision differ from each other as well


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """What end to end must hold, for every output and every batch.

    A flipped step at one rounding tie in an early layer is amplified by the layers behind it, which leaves the distance
    to the float model as it was. A wrong scale, a missing quantizer or a saturating kernel does not.

    Args:
        sqnr_db: least SQNR of the file against the checkpoint in torch.
        cosine: least cosine of the file against the checkpoint in torch.
        float_loss_db: how far the file's SQNR against the float model may lie below the checkpoint's.
        independent: whether steps flip all over the place, as in half precision, where file and checkpoint round sums
            in an order of their own. The noise of quantization is then another in each: of the same size, so that the
            two may lie as far apart as both together are from the float model.
    """

    sqnr_db: float = 10.0
    cosine: float = 0.95
    float_loss_db: float = 1.5
    independent: bool = False

    def least(self, float_sqnr_db: float) -> tuple[float, float]:
        """SQNR and cosine that must be reached, where the checkpoint has ``float_sqnr_db`` against the float model."""
        if not self.independent or not float_sqnr_db - _TWICE_DB < self.sqnr_db:
            return self.sqnr_db, self.cosine
        sqnr = float_sqnr_db - _TWICE_DB
        # Noise stands at a right angle to the signal and to the other's noise.
        return sqnr, min(self.cosine, 1 / (1 + 10 ** (-float_sqnr_db / 10)))


@dataclass(frozen=True)
class Segment:
    """The piece in front of one quantizer, or of one output.

    Args:
        name: of the quantizer's slot, or of the graph's output.
        values: how many were compared.
        ties: how many differ by one step and lie within ``TIE`` of a rounding tie.
        wrong: how many differ otherwise.
        largest: largest difference.
        unit: of ``largest``: ``steps``, for an output ``of the largest magnitude``, for whole numbers ``by value``.
        sqnr_db: of what the file finds against what torch finds; 200 when they are equal.
    """

    name: str
    values: int
    ties: int
    wrong: int
    largest: float
    unit: str
    sqnr_db: float = EQUAL_DB


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
        agreement: of whole numbers (labels, positions), which have no SQNR: the share that the checkpoint finds, too.
    """

    output: str
    batch_size: int
    seq_len: int
    sqnr_db: float
    cosine: float
    float_sqnr_db: float
    float_cosine: float
    expected_float_sqnr_db: float
    agreement: float | None = None


@dataclass(frozen=True)
class Verification:
    """The report of :func:`verify`.

    Args:
        segments: in graph order, all batches added up.
        end_to_end: one for each output and batch.
        bounds: what ``end_to_end`` had to reach.
        runtime: that ran the file end to end.
        faults: what did not hold, in words; empty when all is well.
        saturation: of products whose weights could saturate, where that was asked for; all batches added up.
    """

    segments: list[Segment]
    end_to_end: list[EndToEnd]
    bounds: Bounds
    runtime: str
    faults: list[str] = field(default_factory=list)
    saturation: list[Saturated] = field(default_factory=list)

    @property
    def holds(self) -> bool:
        """Whether everything did."""
        return not self.faults

    @property
    def first_wrong(self) -> str | None:
        """The first segment, in graph order, that does not hold: what stands in front of it is where to look."""
        return next((segment.name for segment in self.segments if segment.wrong), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which knows no NaN and no infinity: None stands for them."""
        return {"holds": self.holds, "first_wrong": self.first_wrong, **_plain(asdict(self))}


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
    form: Form | None = None,
    engine: Runner | None = None,
    sums_in_16_bits: bool = False,
) -> Verification:
    """Compare an ONNX file with the torch model it was exported from.

    Args:
        model: float, or wrapped in mode QUANTIZE; in eval mode.
        path: of ``model.onnx``.
        batches: inputs of several shapes, with padding, as the signature of the form has them.
        runtime: that runs the file end to end: ``onnxruntime``, ``openvino``, ``reference``: ONNX Runtime with its
            optimizations off, for files that are meant for a device which is not here; or ``evaluator``: onnx's own
            evaluator, slow but with every type, which then runs the pieces, too.
        bounds: for end to end, :class:`Bounds` when None, with a wider ``float_loss_db`` in half precision.
        form: that the file has, :class:`~exporters.form.Form` when None; ``model`` computes in its type already.
        engine: built from the file; it runs end to end instead of ``runtime``.
        sums_in_16_bits: whether to simulate CPUs that add pairs of products in 16 bits; no sum may saturate then.

    Returns:
        The report; it does not raise when something does not hold.

    Raises:
        CheckpointError: for a file that cannot be read or is not of ours.
        DataError: for batches that lack an input.
        ExportError: for a runtime that does not exist.
    """
    deployed = deploy(model, form)
    plain = Bounds()
    half = deployed.form.dtype in _HALF_LOSS_DB
    if bounds is None:
        loss = _HALF_LOSS_DB.get(deployed.form.dtype, plain.float_loss_db)
        bounds = replace(plain, float_loss_db=loss, independent=half)
    cut = cut_at_quantizers(path)
    pieces = _pieces(cut, path, runtime)
    whole, runtime = _runner(path, runtime) if engine is None else (engine, "the engine")
    tally = _Tally(deployed.form.dtype)
    saturation = _Saturation(path if sums_in_16_bits else None)
    rows: list[EndToEnd] = []
    faults = ["nothing was compared: there is no batch"]
    with np.errstate(all="ignore"):  # NaN and infinity are counted, not warned about
        for batch in batches:
            missing = [name for name in deployed.signature.input_names if name not in batch]
            if missing:
                faults = [f"the input {name} is missing (given: {', '.join(batch)})" for name in missing]
                raise DataError(describe_faults("a batch of the proof", faults))
            recorded, outputs = _record(deployed, batch)
            arrays = {name: _array(value) for name, value in batch.items()}
            try:
                found = whole(arrays)
                faults = _structure_faults(model, cut, recorded, outputs, found)
                if faults:
                    break
                fed = _compare_segments(tally, cut, pieces, model, recorded, arrays, outputs)
                saturation.add(cut, fed)
            except ExportError as error:
                faults = [f"the file cannot be run with the checkpoint's tensors: {error}"]
                break
            rows += _compare_end_to_end(_float_outputs(deployed, batch), outputs, found, arrays)
    faults += [*tally.faults(), *saturation.faults()]
    faults += [fault for row in rows for fault in _end_to_end_faults(row, bounds, runtime)]
    return Verification(tally.segments(), rows, bounds, runtime, faults, saturation.rows())


def _structure_faults(
    model: nn.Module,
    cut: CutModel,
    recorded: Mapping[_Call, _Record],
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
    calls = _calls(model, cut)
    present = {call: piece for piece, call in calls.items() if call in recorded}
    names = {quantizer: name for name, quantizer in quantizers(model)}
    faults = [
        f"{names[call[0]]}: the checkpoint quantizes here, the file does not"  # case 1
        for call in recorded
        if not any(call == other or _is_same(recorded[call], recorded[other]) for other in present)
    ]
    faults += [
        f"{piece.slot}: the file quantizes here, the checkpoint does not"  # case 2
        for piece in cut.cuts
        if calls.get(piece) not in present
    ]
    for call, piece in present.items():
        assert call[0].spec is not None
        shift = 128 if call[0].spec.signed and piece.dtype == np.uint8 else 0
        expected = int(recorded[call].zero_point)
        if piece.zero_point is not None and piece.zero_point - shift != expected:  # case 3
            faults.append(
                f"{piece.slot}: the zero point is {piece.zero_point - shift} in the file, {expected} in the checkpoint"
            )
    for name in dict.fromkeys((*outputs, *found)):  # case 4
        ours, theirs = (tuple(side[name].shape) if name in side else None for side in (outputs, found))
        if ours != theirs:
            faults.append(f"{name}: the shape is {theirs} in the file, {ours} in the checkpoint (None: no such output)")
    return faults


def _is_same(ours: _Record, theirs: _Record) -> bool:
    """Whether both put the same tensor on the same grid."""
    return (
        np.array_equal(ours.scale, theirs.scale)
        and np.array_equal(ours.zero_point, theirs.zero_point)
        and np.array_equal(ours.integers, theirs.integers)
    )


def _compare_end_to_end(
    in_float: Mapping[str, np.ndarray],
    expected: Mapping[str, np.ndarray],
    actual: Mapping[str, np.ndarray],
    inputs: Mapping[str, np.ndarray],
) -> list[EndToEnd]:
    """A row for every output; of outputs ``(batch, seq, ...)`` the padded positions do not count."""
    rows = []
    tokens = inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"][..., 0]
    batch_size, seq_len = tokens.shape[0], tokens.shape[-1]
    visible = inputs["attention_mask"][..., -seq_len:] != 0
    for name, reference in expected.items():
        # A vector for each text may be as long as the text.
        by_token = reference.ndim > 2 and not name.startswith("present.") and name != "candidate_score"
        padded = reference.shape[:2] == visible.shape and (by_token or name in _TWO_AXES)
        x, a, b = (y[visible] if padded else y for y in map(_wide, (in_float[name], reference, actual[name])))
        if a.dtype.kind in "iu":
            share = float(np.mean(a == b)) if a.size else 1.0
            unknown = dict.fromkeys(_MEASURES, math.nan)
            rows.append(EndToEnd(name, batch_size, seq_len, **unknown, agreement=share))
            continue
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


_MEASURES = ("sqnr_db", "cosine", "float_sqnr_db", "float_cosine", "expected_float_sqnr_db")


_TWO_AXES = ("start_logits", "end_logits", "labels")
"""Outputs ``(batch, seq)``."""


def _end_to_end_faults(row: EndToEnd, bounds: Bounds, runtime: str) -> list[str]:
    """What does not hold; written so that NaN does not hold either. Whole numbers are decided by flipped steps."""
    if row.agreement is not None:
        return []
    where = f"{row.output} at {row.batch_size}x{row.seq_len} in {runtime}"
    faults = []
    sqnr, cosine_ = bounds.least(row.expected_float_sqnr_db)
    if not (row.sqnr_db >= sqnr and row.cosine >= cosine_):
        faults.append(
            f"{where}: SQNR {row.sqnr_db:.1f} dB and cosine {row.cosine:.4f} to the checkpoint in torch, "
            f"needed {sqnr:.1f} dB and {cosine_:.4f}"
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
        return _ratio_db(signal, noise)


def _ratio_db(signal: float, noise: float) -> float:
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
    if runtime == "evaluator":
        return EvaluatorRunner(path), "onnx's reference evaluator"
    if runtime != "onnxruntime":
        known = "onnxruntime, openvino, reference, evaluator"
        raise ExportError(f"no runtime {runtime!r} to verify in: it must be one of {known}")
    return OnnxRuntimeRunner(path), "onnxruntime"


def _pieces(cut: CutModel, path: Path, runtime: str) -> Runner:
    if runtime == "evaluator":
        return EvaluatorRunner(cut.model)
    weights = {"session.model_external_initializers_file_folder_path": str(path.parent.resolve())}  # of large models
    return OnnxRuntimeRunner(cut.model, optimize=False, session_config=weights)


def _array(tensor: Tensor) -> np.ndarray:
    """``tensor`` for a runner; numpy itself has no bfloat16."""
    if tensor.dtype is not torch.bfloat16:
        array: np.ndarray = tensor.numpy()
        return array
    import ml_dtypes

    return tensor.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)


def _wide(array: np.ndarray) -> np.ndarray:
    """Half precision in float32; bfloat16 is of a kind of its own in numpy."""
    return array if array.dtype.kind in "iub" or array.dtype == np.float64 else array.astype(np.float32)


@dataclass(frozen=True)
class _Record:
    """What one quantizer saw: the tensor in steps, its integers counted from the zero point, and the grid.

    Of float8 the steps are its units, and the integers its numbers. ``score`` is, of what comes out of a softmax, the
    largest magnitude of what went in; 0 of everything else.
    """

    steps: np.ndarray
    integers: np.ndarray
    scale: np.ndarray
    zero_point: np.ndarray
    float8: bool = False
    score: float = 0.0

    def near(self, integers: np.ndarray, rounding: float) -> np.ndarray:
        """Which of the file's ``integers`` are what a value rounds to that torch's noise could have made.

        Args:
            integers: the shape of ``steps``.
            rounding: of what precedes, relative to the largest value.
        """
        zone: Any = rounding * float(np.abs(self.integers).max(initial=0))
        if self.score and rounding:
            # By as much as scores are off, relative to 1, is a probability p off relative to 1 - p.
            share = np.clip(self.steps * self.scale, 0, 1)
            zone = zone + rounding * self.score * np.abs(self.steps) * (1 - share)
        if not self.float8:
            near: np.ndarray = np.abs(integers - self.steps) <= 0.5 + TIE + zone
            return near
        zone += TIE * FLOAT8_MAX / 127
        # Rounding never turns an order around, whatever the distance of the neighbours.
        low, high = (_float8(self.steps + side * zone) for side in (-1, 1))
        return (low <= integers) & (integers <= high)

    def transposed(self, perm: tuple[int, ...] | None) -> _Record:
        if perm is None:
            return self
        return replace(self, steps=self.steps.transpose(perm), integers=self.integers.transpose(perm))


def _float8(steps: np.ndarray) -> np.ndarray:
    found: np.ndarray = quantize_float8(torch.from_numpy(steps.astype(np.float32)), torch.ones(())).numpy()
    return found


_Call = tuple[Quantizer, int]
"""A quantizer, and which of its calls in one run of the model it is: REALM's scorer calls its embedder twice."""


def _record(deployed: Deployed, batch: Mapping[str, Tensor]) -> tuple[dict[_Call, _Record], dict[str, np.ndarray]]:
    """Run torch and keep the integers of every call of a quantizer, and the outputs."""
    records: dict[_Call, _Record] = {}
    calls: Counter[Quantizer] = Counter()
    scores: dict[Quantizer, float] = {}

    def score_of(weights: Quantizer, head_size: int) -> Any:
        def note(module: nn.Module, given: Any, result: Tensor) -> None:  # noqa: ARG001
            scores[weights] = float(result.abs().max()) / math.sqrt(head_size)

        return note

    def recorder_of(quantizer: Quantizer) -> Any:
        def record(x: Tensor, q: Tensor) -> None:
            scale, zero_point = quantizer.grid(x)
            records[quantizer, calls[quantizer]] = _Record(
                (x.float() / scale).detach().numpy(),
                (q - zero_point).detach().numpy(),
                scale.detach().numpy(),
                zero_point.detach().numpy(),
                float8=quantizer.spec is not None and quantizer.spec.is_float8,
                score=scores.get(quantizer, 0.0),
            )
            calls[quantizer] += 1

        return record

    # Weights are constants of the file, and a scale per token is computed there in float.
    active = [
        quantizer
        for slot, quantizer in named_slots(deployed.model)
        if slot.name != "weight"
        and quantizer.mode is Mode.QUANTIZE
        and quantizer.spec is not None
        and quantizer.spec.granularity == PerTensor()
    ]
    hooks = [
        attention.scores.register_forward_hook(score_of(weights, attention.head_size))
        for attention in deployed.model.modules()
        if isinstance(attention, Attention)
        and isinstance(weights := getattr(attention.context, "input_quantizer", None), Quantizer)
    ]
    try:
        for quantizer in active:
            quantizer.recorder = recorder_of(quantizer)
        outputs = deployed.run(batch)
    finally:
        for quantizer in active:
            quantizer.recorder = None
        for hook in hooks:
            hook.remove()
    return records, {name: _wide(_array(value)) for name, value in outputs.items()}


def _float_outputs(deployed: Deployed, batch: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """The same model with its quantizers off."""
    model = deployed.model
    modes = {quantizer: quantizer.mode for _, quantizer in quantizers(model)}
    try:
        set_mode(model, Mode.OFF)
        outputs = deployed.run(batch)
    finally:
        for quantizer, mode in modes.items():
            quantizer.mode = mode
    return {name: _wide(_array(value)) for name, value in outputs.items()}


def _compare_segments(
    tally: _Tally,
    cut: CutModel,
    pieces: Runner,
    model: nn.Module,
    recorded: Mapping[_Call, _Record],
    arrays: Mapping[str, np.ndarray],
    outputs: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Add up what the pieces find; the integers that they were fed, by name of the graph's input."""
    torch_side = {piece: recorded[call].transposed(piece.perm) for piece, call in _calls(model, cut).items()}
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
    return fed


def _calls(model: nn.Module, cut: CutModel) -> dict[Cut, _Call]:
    """For every cut at a quantizer that the checkpoint has: that quantizer, and which of its calls it is.

    A module may have several names, and the file those of its calls; the order is that of the graph.
    """
    found: dict[Cut, _Call] = {}
    calls: Counter[Quantizer] = Counter()
    for piece in cut.cuts:
        try:
            module = model.get_submodule(piece.slot)
        except AttributeError:
            continue
        if isinstance(module, Quantizer):
            found[piece] = module, calls[module]
            calls[module] += 1
    return found


class _Saturation:
    """Counts the pair sums that would saturate, with the integers that torch finds."""

    def __init__(self, path: Path | None) -> None:
        self._products = [] if path is None else at_risk(load_onnx(path).graph)
        self._found: dict[str, Saturated] = {}

    def add(self, cut: CutModel, fed: Mapping[str, np.ndarray]) -> None:
        integers = {piece.output: fed[piece.input] for piece in cut.cuts if piece.input in fed}
        for product in self._products:
            if product.activations not in integers:
                continue
            new = saturated_pairs(product, integers[product.activations])
            old = self._found.get(product.name, replace(new, pairs=0, saturated=0, worst=0))
            self._found[product.name] = replace(
                new,
                pairs=old.pairs + new.pairs,
                saturated=old.saturated + new.saturated,
                worst=max(old.worst, new.worst),
            )

    def rows(self) -> list[Saturated]:
        return list(self._found.values())

    def faults(self) -> list[str]:
        return [
            f"{row.name}: {row.saturated:,} of {row.pairs:,} sums of pairs leave 16 bits on CPUs without VNNI, the "
            f"largest is {row.worst:,}: export for them (--isa avx2), or with overflow_safe weights"
            for row in self.rows()
            if row.saturated
        ]


class _Tally:
    """Adds up the segments over the batches."""

    def __init__(self, dtype: str = "fp32") -> None:
        self._rows: dict[str, Segment] = {}
        self._power: dict[str, list[float]] = {}  # of signal and difference
        self._rounding = _HALF_STEP.get(dtype, 0.0) * _HALF_ROUNDINGS
        self._tolerance = _HALF_TOLERANCE.get(dtype, FLOAT_TOLERANCE)

    def add_integers(self, name: str, record: _Record, integers: np.ndarray) -> None:
        difference = np.abs(record.integers - integers)
        off = ~(difference == 0)  # NaN is wrong
        # Near enough to what torch rounded, so that a difference within the zone explains it.
        tie = off & record.near(integers, self._rounding)
        wrong = int((off & ~tie).sum())
        largest = float(difference.max(initial=0))
        row = Segment(name, difference.size, int(tie.sum()), wrong, largest, "steps")
        self._add(row, record.integers, difference)

    def add_floats(self, name: str, expected: np.ndarray, actual: np.ndarray) -> None:
        expected, actual = _wide(expected), _wide(actual)
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
            _ratio_db(*power),
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
