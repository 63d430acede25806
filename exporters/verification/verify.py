"""Proof that an exported file computes what the checkpoint computes.

By segment: the graph is cut at its quantizers, every piece is fed torch's own integers, runtime optimizations off; the
integers that come out must be equal, except values that lie within ``TIE`` of a rounding tie, which are counted. Half
precision widens that zone by its own rounding.

End to end: the file as it is export_model, optimizations on. One flipped step grows through the layers, so file and
checkpoint may differ there; but both must lie equally close to the float model, and close to each other within stated
bounds.
"""

from __future__ import annotations

import gc
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from exporters.export_model import wrap_for_export
from exporters.onnx.segments import cut_at_quantizers
from exporters.runners import EvaluatorRunner, OnnxRuntimeRunner, OpenVINORunner, Runner
from exporters.runners.inputs import missing_inputs, raise_problems
from exporters.verification.end_to_end import compare_end_to_end, end_to_end_problems
from exporters.verification.matching import output_problems, quantizer_problems
from exporters.verification.numpy_conversion import to_numpy
from exporters.verification.pair_sums import PairSums
from exporters.verification.recording import float_outputs, outputs_of, record_run
from exporters.verification.report import Bounds, OutputComparison, Segment, VerificationReport
from exporters.verification.segments import SegmentTotals, compare_segments
from exporters.verification.similarity import cosine, sqnr_db
from qdq.errors import ExportError, MissingPackageError

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

    from exporters.export_model import ExportModel
    from exporters.interface import ExportInterface
    from exporters.onnx.segments import Cut

__all__ = ["Bounds", "OutputComparison", "Segment", "VerificationReport", "cosine", "sqnr_db", "verify"]

_Batch = Mapping[str, Tensor]

_RUNTIMES = ("onnxruntime", "openvino", "reference", "evaluator")

_HALF_LOSS_DB = {"fp16": 3.0, "bf16": 6.0}  # two runs in half precision differ from each other as well


def verify(
    model: nn.Module,
    path: Path,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    runtime: str = "onnxruntime",
    bounds: Bounds | None = None,
    interface: ExportInterface | None = None,
    engine: Runner | None = None,
    sums_in_16_bits: bool = False,
) -> VerificationReport:
    """Compare an ONNX file with the torch model it was exported from.

    Args:
        model: float, or wrapped in mode QUANTIZE; in eval mode.
        path: of ``model.onnx``.
        batches: inputs of several shapes, with padding, as the signature of the form has them.
        runtime: that runs the file end to end: ``onnxruntime``, ``openvino``, ``reference``: ONNX Runtime with its
            optimizations off, for files that are meant for a device which is not here; or ``evaluator``: onnx's own
            evaluator, slow but with every type, which then runs the pieces, too.
        bounds: for end to end, :class:`Bounds` when None, with a wider ``float_loss_db`` in half precision.
        form: that the file has, :class:`~exporters.interface.ExportInterface` when None; ``model`` computes in its type already.
        engine: built from the file; it runs end to end instead of ``runtime``.
        sums_in_16_bits: whether to simulate CPUs that add pairs of products in 16 bits; no sum may saturate then.

    Returns:
        The report; it does not raise when something does not hold.

    Raises:
        CheckpointError: for a file that cannot be read or is not of ours.
        DataError: for batches that lack an input.
        ExportError: for a runtime that does not exist.
        OSError: when the temporary directory cannot hold the weights of the file once more.
    """
    if runtime not in _RUNTIMES:
        raise ExportError(f"no runtime {runtime!r} to verify in: it must be one of {', '.join(_RUNTIMES)}")
    export_model = wrap_for_export(model, interface)
    if bounds is None:
        plain, dtype = Bounds(), export_model.interface.dtype
        loss = _HALF_LOSS_DB.get(dtype, plain.float_loss_db)
        bounds = replace(plain, float_loss_db=loss, independent=dtype in _HALF_LOSS_DB)
    batches = list(batches)
    names = export_model.signature.input_names
    raise_problems(
        "a batch of the proof",
        [*dict.fromkeys(problem for batch in batches for problem in missing_inputs(names, batch))],
    )
    totals = SegmentTotals(export_model.interface.dtype)
    problems = [] if batches else ["nothing was compared: there is no batch"]
    start_pieces = EvaluatorRunner if runtime == "evaluator" else partial(OnnxRuntimeRunner, optimize=False)
    # NaN and infinity are counted, not warned about.
    with TemporaryDirectory(prefix="qdq-verify-") as folder, np.errstate(all="ignore"):
        pieces = Path(folder) / "pieces.onnx"
        cuts = cut_at_quantizers(path, pieces)
        saturation = PairSums(path if sums_in_16_bits else None)
        gc.collect()  # graphs refer to themselves, and hold what was read of the weights
        # One runtime after the other: each holds the weights.
        whole, runtime = _runner(path, runtime) if engine is None else (engine, "the engine")
        rows, different = _end_to_end(export_model, batches, whole)
        del whole
        different = different or _by_segment(export_model, batches, cuts, start_pieces(pieces), totals, saturation)
    if different:  # then how far the outputs are apart says nothing more
        rows = []
    problems += [*different, *totals.problems(), *saturation.problems()]
    problems += [problem for row in rows for problem in end_to_end_problems(row, bounds, runtime)]
    return VerificationReport(totals.segments(), rows, bounds, runtime, problems, saturation.rows())


def _end_to_end(
    export_model: ExportModel, batches: list[_Batch], whole: Runner
) -> tuple[list[OutputComparison], list[str]]:
    """The outputs of the file as it is export_model, and what keeps them from being compared."""
    rows: list[OutputComparison] = []
    for batch in batches:
        arrays = _arrays(batch)
        try:
            found = whole(arrays)
        except ExportError as error:
            return rows, [_cannot_run(error)]
        expected = outputs_of(export_model, batch)
        if problems := output_problems(expected, found):
            return rows, problems
        rows += compare_end_to_end(float_outputs(export_model, batch), expected, found, arrays)
    return rows, []


def _by_segment(
    export_model: ExportModel,
    batches: list[_Batch],
    cuts: Sequence[Cut],
    pieces: Runner,
    totals: SegmentTotals,
    saturation: PairSums,
) -> list[str]:
    """Add up the segments of the file; what keeps them from being compared."""
    for batch in batches:
        recorded, outputs = record_run(export_model, batch, per_token=[piece.slot for piece in cuts])
        if problems := quantizer_problems(export_model.model, cuts, recorded):
            return problems
        try:
            fed = compare_segments(totals, cuts, pieces, export_model.model, recorded, _arrays(batch), outputs)
        except ExportError as error:
            return [_cannot_run(error)]
        saturation.add(cuts, fed)
        del recorded, fed  # before those of the next batch
    return []


def _cannot_run(error: ExportError) -> str:
    return f"the file cannot be run with the checkpoint's tensors: {error}"


def _arrays(batch: _Batch) -> dict[str, np.ndarray]:
    return {name: to_numpy(value) for name, value in batch.items()}


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
    return OnnxRuntimeRunner(path), "onnxruntime"
