"""Write an exported directory from a checkpoint, and verify one against its checkpoint.

    model.onnx (+ model.onnx.data above 2 GB)   config.json   tokenizer ...   export.json

``export.json`` says what was exported: the target, the recipe, the opset, the names of inputs and outputs, and the
export interface (under the key ``form``).
"""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.interface import ExportInterface
from qdq.checkpoint import copy_tokenizer, load
from qdq.errors import ExportError
from qdq.models.huggingface import config_to_json
from qdq.models.stored_types import type_name
from qdq.quantization.quantizer import Mode, quantizers, set_mode
from qdq.recipes.apply import apply_recipe
from qdq.recipes.recipe import Recipe
from qdq.source import EXPORT_FILE, MODEL_FILE, ModelDirectory, read_export
from qdq.storage import atomic_directory, write_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from exporters.onnx.export import ExportResult
    from exporters.verification.verify import VerificationReport

__all__ = ["EXPORT_FILE", "MODEL_FILE", "export", "read_export", "verify"]

FORMAT = 1

_CPU_RUNTIMES = ("onnxruntime", "openvino")


def export(
    checkpoint: str | Path | ModelDirectory,
    output: str | Path,
    *,
    target: str | None,
    recipe: Recipe | str | None = None,
    opset: int | None = None,
    interface: ExportInterface | None = None,
    isa: str = "any",
    tuning: Mapping[str, Any] | None = None,
    form: ExportInterface | None = None,
) -> ExportResult:
    """Export a checkpoint into a directory, which appears whole or not at all.

    Args:
        checkpoint: Directory of a float or quantized checkpoint.
        output: Directory to write. An older export there is replaced.
        target: ``onnxruntime``, ``openvino`` or ``tensorrt``; None exports the float model.
        recipe: Recipe to apply before the export; see :func:`exporters.onnx.export.export_onnx`.
        opset: Version of the standard operators. If None, 23 for onnxruntime and 21 otherwise.
        interface: Inputs, outputs and float type of the file, the default
            :class:`~exporters.interface.ExportInterface` if None.
        isa: Instruction set of the CPUs that the file is for; see :func:`exporters.onnx.export.export_onnx`.
        tuning: How the recipe was chosen, for ``export.json``; see :func:`exporters.tune.tune`.
        form: Deprecated name of ``interface``.

    Returns:
        What was exported.

    Raises:
        CheckpointError: If the checkpoint cannot be read.
        ConfigError: If ``output`` exists and is not an export.
        ExportError: If the target cannot run this combination.
        StorageError: If the directory cannot be written, for example because the disk is full.
    """
    from exporters.onnx.export import check_options, export_onnx
    from exporters.onnx.precision import TORCH_DTYPES

    if form is not None:
        warnings.warn("the argument form is named interface now", DeprecationWarning, stacklevel=2)
        interface = form if interface is None else interface
    check_options(target, opset, interface, isa)
    directory = ModelDirectory.of(checkpoint)
    left_out = []
    if interface is not None and interface.pooling is not None:
        left_out = directory.sentence.left_out_of_file(interface.pooling, normalize=interface.normalize)
    with atomic_directory(Path(output), kind="export") as folder:
        model = load(directory)
        exported = export_onnx(
            model, folder / MODEL_FILE, target=target, recipe=recipe, opset=opset, interface=interface, isa=isa
        )
        exported = replace(exported, notes=(*exported.notes, *left_out))
        copy_tokenizer(directory, folder)
        dtype = type_name(TORCH_DTYPES[exported.interface.dtype])
        write_json(folder / "config.json", config_to_json(model.config, model.task, dtype=dtype))
        record = {"format": FORMAT, **exported.to_dict()}
        write_json(folder / EXPORT_FILE, record if tuning is None else {**record, "tuning": dict(tuning)})
    return exported


def verify(
    checkpoint: str | Path | ModelDirectory,
    folder: str | Path,
    batches: Iterable[Mapping[str, Tensor]] | None = None,
    *,
    engine: str | Path | None = None,
    isa: str | None = None,
) -> VerificationReport:
    """Verify that an exported directory computes what its checkpoint computes.

    Args:
        checkpoint: Directory of the checkpoint that was exported.
        folder: Directory that :func:`export` wrote, or an ONNX file in it.
        batches: Inputs, those of :func:`exporters.verification.inputs.verification_batches` if None.
        engine: A TensorRT engine built from the export, which runs end to end on the GPU.
        isa: Instruction set of the CPUs on which the integer products must be exact, the one that the export was
            written for if None. CPUs without VNNI are simulated.

    Returns:
        The report. A comparison that fails is in the report and raises nothing.

    Raises:
        BuildError: If there is no GPU for the engine, or it cannot be loaded.
        CheckpointError: If the checkpoint or the export cannot be read.
        ExportError: If the export does not belong to this checkpoint.
    """
    from exporters.tensorrt.runner import TensorRTRunner

    # An engine that cannot be loaded fails here, before the imports below take their seconds.
    runner = None if engine is None else TensorRTRunner(Path(engine))
    from exporters.export_model import wrap_for_export
    from exporters.onnx.isa import host_isa, isa_named
    from exporters.onnx.precision import to_dtype
    from exporters.onnx.targets import target_named
    from exporters.verification.inputs import verification_batches
    from exporters.verification.verify import verify as verify_model

    given = Path(folder)
    file, folder = (given, given.parent) if given.is_file() else (given / MODEL_FILE, given)
    document = read_export(folder)
    cpu = isa_named(document.get("isa", "any") if isa is None else isa)
    interface = ExportInterface.from_dict(document.get("form", {}), source=f"{Path(folder) / EXPORT_FILE}: form")
    model = load(checkpoint)
    target = document["target"]
    if target == "float":
        set_mode(model, Mode.OFF)
        runtime = "onnxruntime"
    else:
        runtime = target_named(target).runtime
        if not any(quantizers(model)):
            raise ExportError(
                f"{folder} was exported for {target}, but {checkpoint} is not quantized: "
                "give the checkpoint that it was exported from"
            )
        if document["recipe"] is not None:
            apply_recipe(model, Recipe.from_dict(document["recipe"], source=str(Path(folder) / EXPORT_FILE)))
            set_mode(model, Mode.QUANTIZE)
    to_dtype(model, interface.dtype)  # verification compares with torch in the type of the file
    if interface.dtype == "bf16":
        runtime = "evaluator"  # ONNX Runtime's CPU kernels do not have the type
    if batches is None:
        batches = verification_batches(checkpoint, wrap_for_export(model, interface))
    return verify_model(
        model,
        file,
        batches,
        runtime=runtime,
        interface=interface,
        engine=runner,
        # The runtime itself runs on this CPU, so its saturation counts as well.
        sums_in_16_bits=cpu.saturates or (runtime in _CPU_RUNTIMES and host_isa().saturates),
    )
