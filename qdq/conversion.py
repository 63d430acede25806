"""Convert checkpoints of other packages to checkpoint directories, with a report of what became of every tensor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.checkpoint import copy_tokenizer, write
from qdq.errors import ConfigError
from qdq.interop.tokenizer_files import take_vocabulary
from qdq.models.huggingface import save_model
from qdq.quantization.quantizer import quantizers
from qdq.recipes.recipe import load_recipe
from qdq.storage import atomic_directory, check_no_input

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qdq.interop.conversion import Conversion

__all__ = ["FORMATS", "convert"]

FORMATS = ("megatron-lm", "tensorflow", "pytorch-quantization")


def convert(
    source: str | Path,
    output: str | Path,
    *,
    format: str,  # noqa: A002 (the name that users know)
    task: str | None = None,
    config: str | Path | None = None,
    model_type: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Conversion:
    """Convert a checkpoint of Megatron-LM, TensorFlow or pytorch-quantization to a Hugging Face directory.

    The directory is written completely or not at all. Tokenizer files beside the source are copied; the report says
    if there are none.

    Args:
        source: The checkpoint: a file, a prefix or a directory, depending on the format.
        output: The directory to write; an older checkpoint there is replaced.
        format: One of :data:`FORMATS`.
        task: The task of the model; by default the one that uses all heads of the checkpoint.
        config: A JSON file with the sizes, for ``tensorflow`` only.
        model_type: The family, for ``tensorflow`` only.
        overrides: Fields of the configuration that override those of the source.

    Returns:
        The report.

    Raises:
        CheckpointError: Files are damaged, or tensors are unknown, missing or of another shape. The message lists all
            of them.
        ConfigError: There is no such format, or it does not have some option.
        MissingPackageError: The package that reads the format is not installed.
        StorageError: A file cannot be written, for instance because the disk is full.
    """
    if format not in FORMATS:
        raise ConfigError(f"format {format!r}: it must be one of {', '.join(FORMATS)}")
    if format != "tensorflow" and (config is not None or model_type is not None):
        raise ConfigError(f"config and model_type are for TensorFlow's checkpoints, not for {format}")
    check_no_input(Path(output), [Path(source)])
    if format == "tensorflow":
        from qdq.interop.tensorflow.convert import convert as from_tensorflow

        found = from_tensorflow(source, config=config, model_type=model_type, task=task, overrides=overrides)
    elif format == "megatron-lm":
        from qdq.interop.megatron_lm import convert as from_megatron

        found = from_megatron(source, task=task, overrides=overrides)
    else:
        from qdq.interop.pytorch_quantization.convert import convert as from_toolkit

        found = from_toolkit(source, task=task, overrides=overrides)
    beside = Path(source) if Path(source).is_dir() else Path(source).parent
    with atomic_directory(Path(output), kind="checkpoint") as folder:
        if any(quantizers(found.model)):
            record = {"method": "imported", "source": "pytorch-quantization"}
            write(found.model, folder, recipe=load_recipe("qdqbert"), calibration=record)
        else:
            save_model(found.model, folder)
        copy_tokenizer(beside, folder)
        places = (beside, *found.folders)
        note = take_vocabulary(places, folder, model_type=found.model.config.model_type, lowercase=found.lowercase)
        if note:
            found.report.notes.append(note)
    return found.report
