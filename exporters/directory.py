"""Exported directories: write one from a checkpoint, and prove one against it.

    model.onnx (+ model.onnx.data above 2 GB)   config.json   tokenizer ...   export.json

``export.json`` says what was exported: target, recipe in force, opset, names of inputs and outputs, and the form.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.interface import Form
from qdq.checkpoint import copy_tokenizer_files, load
from qdq.errors import CheckpointError, ExportError, describe_problems
from qdq.models.huggingface import config_to_json
from qdq.quantization.quantizer import Mode, quantizers, set_mode
from qdq.recipes.apply import apply_recipe
from qdq.recipes.recipe import Recipe
from qdq.storage import atomic_directory, missing_directory, read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import Tensor

    from exporters.onnx.export import Exported
    from exporters.verification.verify import Verification

__all__ = ["EXPORT_FILE", "MODEL_FILE", "export", "read_export", "verify"]

FORMAT = 1
EXPORT_FILE = "export.json"
MODEL_FILE = "model.onnx"

_ON_CPU = ("onnxruntime", "openvino")


def export(
    checkpoint: str | Path,
    output: str | Path,
    *,
    target: str | None,
    recipe: Recipe | str | None = None,
    opset: int | None = None,
    form: Form | None = None,
    isa: str = "any",
    tuning: Mapping[str, Any] | None = None,
) -> Exported:
    """Export a checkpoint into a directory, which appears whole or not at all.

    Args:
        checkpoint: directory of a float or quantized checkpoint.
        output: directory to write; an older export of ours there is replaced.
        target: ``onnxruntime``, ``openvino``, ``tensorrt``; None for the float model.
        recipe: to change to first; see :func:`exporters.onnx.export.export_model`.
        opset: of the standard operators, 21 when None.
        form: inputs, outputs and types of choice, :class:`~exporters.interface.Form` when None.
        isa: of the CPUs that the file is for; see :func:`exporters.onnx.export.export_model`.
        tuning: how the recipe was chosen, for ``export.json``; see :func:`exporters.tune.tune`.

    Raises:
        CheckpointError: for a checkpoint that cannot be read.
        ConfigError: when something that is not ours is in the way.
        ExportError: for a combination that the target cannot run.
        StorageError: when the disk is full, or the like.
    """
    from exporters.onnx.export import DEFAULT_OPSET, check_options, export_model

    opset = DEFAULT_OPSET if opset is None else opset
    check_options(target, opset, form, isa)
    with atomic_directory(Path(output), kind="export") as folder:
        model = load(checkpoint)
        exported = export_model(
            model, folder / MODEL_FILE, target=target, recipe=recipe, opset=opset, form=form, isa=isa
        )
        copy_tokenizer_files(Path(checkpoint), folder)
        write_json(folder / "config.json", config_to_json(model.config, model.task))
        record = {"format": FORMAT, **exported.to_dict()}
        write_json(folder / EXPORT_FILE, record if tuning is None else {**record, "tuning": dict(tuning)})
    return exported


def read_export(folder: str | Path) -> dict[str, Any]:
    """The contents of ``export.json``.

    Raises:
        CheckpointError: when the directory is not an export of ours, or of a newer format.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CheckpointError(missing_directory(folder, "give one that qdq export wrote"))
    file = folder / EXPORT_FILE
    document = read_json(file, missing=f"{folder} is not an export of qdq: it has no {EXPORT_FILE}")
    if document.get("format") != FORMAT:
        raise CheckpointError(f"{file}: not a format that this version reads ({FORMAT})")
    missing = [f"{key} is missing" for key in ("target", "recipe", "inputs") if key not in document]
    if missing:
        raise CheckpointError(describe_problems(str(file), missing))
    if not (folder / MODEL_FILE).is_file():
        raise CheckpointError(f"{folder}: {MODEL_FILE} is missing")
    return document


def verify(
    checkpoint: str | Path,
    folder: str | Path,
    batches: Iterable[Mapping[str, Tensor]] | None = None,
    *,
    engine: str | Path | None = None,
    isa: str | None = None,
) -> Verification:
    """Prove that an exported directory computes what the checkpoint computes.

    Args:
        checkpoint: directory of the checkpoint that was exported.
        folder: directory that :func:`export` wrote.
        batches: inputs; None takes :func:`exporters.verification.inputs.verification_batches`.
        engine: a TensorRT engine built from the export, to be run end to end on the GPU.
        isa: of CPUs on which integer products must be exact, too; None takes that which the export was written for.
            What CPUs without VNNI do is simulated.

    Raises:
        BuildError: when there is no GPU for the engine, or it cannot be loaded.
        CheckpointError: for a checkpoint or an export that cannot be read.
        ExportError: when the export does not belong to this checkpoint.
    """
    from exporters.tensorrt.runner import TensorRTRunner

    runner = None if engine is None else TensorRTRunner(Path(engine))
    from exporters.export_model import deploy
    from exporters.onnx.isa import isa_named, this_isa
    from exporters.onnx.precision import to_dtype
    from exporters.onnx.targets import target_named
    from exporters.verification.inputs import verification_batches
    from exporters.verification.verify import verify as verify_model

    document = read_export(folder)
    cpu = isa_named(document.get("isa", "any") if isa is None else isa)
    form = Form.from_dict(document.get("form", {}), source=f"{Path(folder) / EXPORT_FILE}: form")
    model = load(checkpoint)
    target = document["target"]
    if target == "float":
        set_mode(model, Mode.OFF)
        runtime = "onnxruntime"
    else:
        runtime = target_named(target).runtime
        if not any(quantizers(model)):
            raise ExportError(f"{folder} was exported for {target}, but {checkpoint} is not quantized")
        if document["recipe"] is not None:
            apply_recipe(model, Recipe.from_dict(document["recipe"], source=str(Path(folder) / EXPORT_FILE)))
            set_mode(model, Mode.QUANTIZE)
    to_dtype(model, form.dtype)
    if form.dtype == "bf16":
        runtime = "evaluator"  # ONNX Runtime's CPU kernels do not have the type
    if batches is None:
        batches = verification_batches(checkpoint, deploy(model, form))
    return verify_model(
        model,
        Path(folder) / MODEL_FILE,
        batches,
        runtime=runtime,
        form=form,
        engine=runner,
        # The file is run here, too.
        sums_in_16_bits=cpu.saturates or (runtime in _ON_CPU and this_isa().saturates),
    )
