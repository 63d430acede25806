"""Verify that an exported file computes what its checkpoint computes.

By segment: the graph is cut at its quantizers, and every segment gets the integers of torch, with the optimizations of
the runtime off. It must return the integers of torch. Values at a rounding tie may differ and are counted: torch
computes each segment in float64 as well, and the difference to float32 says for each channel how near to a tie is near
enough. Half precision widens that zone by its own rounding.

End to end: the whole file runs with optimizations on. One value that rounds to the other neighbor grows through the
layers, so file and checkpoint may differ. But both must be equally close to the float model, and close to each other
within bounds.
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
from exporters.verification.end_to_end import bound_problems, compare_outputs
from exporters.verification.matching import output_problems, quantizer_problems
from exporters.verification.numpy_conversion import to_numpy
from exporters.verification.pair_sums import PairSums
from exporters.verification.recording import run_and_record, run_float_outputs, run_outputs
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

_HALF_LOSS_DB = {"fp16": 3.0, "bf16": 6.0}  # even two runs of the same model differ in half precision


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
        model: A float model, or a wrapped one in mode QUANTIZE; in eval mode.
        path: The ONNX file.
        batches: Inputs of several shapes, with padding, for the signature of the file.
        runtime: Runtime that runs the file end to end. ``onnxruntime``; ``openvino``; ``reference``, ONNX Runtime with
            its optimizations off, for files whose device is not here; or ``evaluator``, the slow evaluator of onnx that
            knows every type, which then runs the segments as well.
        bounds: Bounds for the outputs, :class:`Bounds` if None, with a larger ``float_loss_db`` in half precision.
        interface: The export interface of the file, the default one if None. ``model`` must compute in its type
            already.
        engine: An engine built from the file, which runs end to end instead of ``runtime``.
        sums_in_16_bits: Whether to simulate CPUs that add pairs of products in 16 bits. No sum may saturate then.

    Returns:
        The report. A comparison that fails is in the report and raises nothing.

    Raises:
        CheckpointError: If the file cannot be read, or qdq did not write it.
        DataError: If a batch lacks an input.
        ExportError: If the runtime is unknown.
        OSError: If the temporary directory has no room for another copy of the weights.
    """
    if runtime not in _RUNTIMES:
        raise ExportError(f"no runtime {runtime!r} to verify in: it must be one of {', '.join(_RUNTIMES)}")
    export_model = wrap_for_export(model, interface)
    if bounds is None:
        default, dtype = Bounds(), export_model.interface.dtype
        loss = _HALF_LOSS_DB.get(dtype, default.float_loss_db)
        bounds = replace(default, float_loss_db=loss, independent=dtype in _HALF_LOSS_DB)
    batches = list(batches)
    names = export_model.signature.input_names
    raise_problems(
        "a batch of the verification",
        [*dict.fromkeys(problem for batch in batches for problem in missing_inputs(names, batch))],
    )
    totals = SegmentTotals(export_model.interface.dtype)
    problems = [] if batches else ["nothing was compared: there is no batch"]
    cut_runner = EvaluatorRunner if runtime == "evaluator" else partial(OnnxRuntimeRunner, optimize=False)
    # NaN and infinity are counted as wrong, so numpy need not warn about them.
    with TemporaryDirectory(prefix="qdq-verify-") as folder, np.errstate(all="ignore"):
        cut_path = Path(folder) / "cut.onnx"
        cuts = cut_at_quantizers(path, cut_path)
        saturation = PairSums(path if sums_in_16_bits else None)
        gc.collect()  # graphs have cycles, and keep the weights that were read in memory
        # One runtime after the other, because each has a copy of the weights in memory.
        whole, runtime = _runner(path, runtime) if engine is None else (engine, "the engine")
        rows, different = _end_to_end(export_model, batches, whole)
        del whole
        different = different or _by_segment(export_model, batches, cuts, cut_runner(cut_path), totals, saturation)
    if different:  # the distance between outputs of different graphs says nothing
        rows = []
    problems += [*different, *totals.problems(), *saturation.problems()]
    problems += [problem for row in rows for problem in bound_problems(row, bounds, runtime)]
    return VerificationReport(totals.segments(), rows, bounds, runtime, problems, saturation.rows())


def _end_to_end(
    export_model: ExportModel, batches: list[_Batch], whole: Runner
) -> tuple[list[OutputComparison], list[str]]:
    """Compare the outputs of the whole file; return the comparisons, and why outputs cannot be compared."""
    rows: list[OutputComparison] = []
    for batch in batches:
        arrays = _arrays(batch)
        try:
            found = whole(arrays)
        except ExportError as error:
            return rows, [_cannot_run(error)]
        expected = run_outputs(export_model, batch)
        if problems := output_problems(expected, found):
            return rows, problems
        rows += compare_outputs(run_float_outputs(export_model, batch), expected, found, arrays)
    return rows, []


def _by_segment(
    export_model: ExportModel,
    batches: list[_Batch],
    cuts: Sequence[Cut],
    cut_runner: Runner,
    totals: SegmentTotals,
    saturation: PairSums,
) -> list[str]:
    """Compare the segments of the file; return why they cannot be compared."""
    for batch in batches:
        recorded, outputs = run_and_record(export_model, batch, per_token=[cut.slot for cut in cuts])
        if problems := quantizer_problems(export_model.model, cuts, recorded):
            return problems
        try:
            fed = compare_segments(totals, cuts, cut_runner, export_model.model, recorded, _arrays(batch), outputs)
        except ExportError as error:
            return [_cannot_run(error)]
        saturation.add(cuts, fed)
        del recorded, fed  # frees their memory before the next batch is recorded
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
