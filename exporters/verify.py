"""Proof that an exported file computes what the checkpoint computes.

By segment: the graph is cut at its quantizers, every piece is fed torch's own integers, runtime optimizations off; the
integers that come out must be equal, except values that lie within ``TIE`` of a rounding tie, which are counted. Half
precision widens that zone by its own rounding.

End to end: the file as it is deployed, optimizations on. One flipped step grows through the layers, so file and
checkpoint may differ there; but both must lie equally close to the float model, and close to each other within stated
bounds.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from exporters.deployed import deploy
from exporters.onnx.segments import CutModel, cut_at_quantizers
from exporters.proving.arrays import array_of
from exporters.proving.end_to_end import compare_end_to_end, end_to_end_faults
from exporters.proving.measures import cosine, sqnr_db
from exporters.proving.pair_sums import PairSums
from exporters.proving.recording import float_outputs, record_run
from exporters.proving.report import Bounds, EndToEnd, Segment, Verification
from exporters.proving.segments import Tally, compare_segments
from exporters.proving.structure import structure_faults
from exporters.runners import EvaluatorRunner, OnnxRuntimeRunner, OpenVINORunner, Runner
from qdq.errors import DataError, ExportError, MissingPackageError, describe_faults

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from torch import Tensor, nn

    from exporters.form import Form

__all__ = ["Bounds", "EndToEnd", "Segment", "Verification", "cosine", "sqnr_db", "verify"]

_HALF_LOSS_DB = {"fp16": 3.0, "bf16": 6.0}  # two runs in half precision differ from each other as well


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
    tally = Tally(deployed.form.dtype)
    saturation = PairSums(path if sums_in_16_bits else None)
    rows: list[EndToEnd] = []
    faults = ["nothing was compared: there is no batch"]
    with np.errstate(all="ignore"):  # NaN and infinity are counted, not warned about
        for batch in batches:
            missing = [name for name in deployed.signature.input_names if name not in batch]
            if missing:
                faults = [f"the input {name} is missing (given: {', '.join(batch)})" for name in missing]
                raise DataError(describe_faults("a batch of the proof", faults))
            recorded, outputs = record_run(deployed, batch, per_token=[piece.slot for piece in cut.cuts])
            arrays = {name: array_of(value) for name, value in batch.items()}
            try:
                found = whole(arrays)
                faults = structure_faults(model, cut, recorded, outputs, found)
                if faults:
                    break
                fed = compare_segments(tally, cut, pieces, model, recorded, arrays, outputs)
                saturation.add(cut, fed)
            except ExportError as error:
                faults = [f"the file cannot be run with the checkpoint's tensors: {error}"]
                break
            rows += compare_end_to_end(float_outputs(deployed, batch), outputs, found, arrays)
    faults += [*tally.faults(), *saturation.faults()]
    faults += [fault for row in rows for fault in end_to_end_faults(row, bounds, runtime)]
    return Verification(tally.segments(), rows, bounds, runtime, faults, saturation.rows())


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
