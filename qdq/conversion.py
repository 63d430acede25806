"""Checkpoints of other packages to directories of ours, with a report of what became of every tensor."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.checkpoint import copy_tokenizer, save
from qdq.errors import ConfigError
from qdq.models.huggingface import save_model
from qdq.recipes.recipe import load_recipe
from qdq.storage import atomic_directory

if TYPE_CHECKING:
    from collections.abc import Mapping

    from qdq.interop.conversion import Conversion

__all__ = ["FORMATS", "convert"]

FORMATS = ("megatron-lm", "tensorflow", "pytorch-quantization")


def convert(
    source: str | Path,
    output: str | Path,
    *,
    format: str,  # noqa: A002 (what users call it)
    task: str | None = None,
    config: str | Path | None = None,
    model_type: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Conversion:
    """Convert a checkpoint. The directory appears whole or not at all; tokenizer files beside the source are copied.

    Args:
        source: the checkpoint: a file, a prefix or a directory, see the ``convert`` of each format.
        output: directory to write; an older checkpoint of ours there is replaced.
        format: one of :data:`FORMATS`.
        task: the head; by default the one that uses all there are.
        config: JSON with the sizes; ``tensorflow`` only.
        model_type: the family; ``tensorflow`` only.
        overrides: fields of the configuration that win over what the source says.

    Returns:
        The report.

    Raises:
        CheckpointError: damaged files, or tensors that are unknown, missing or of another shape: all of them.
        ConfigError: an unknown format, or options that it does not have.
        MissingPackageError: the package that reads the format is not installed.
        StorageError: when the disk is full, or the like.
    """
    if format not in FORMATS:
        raise ConfigError(f"format {format!r}: it must be one of {', '.join(FORMATS)}")
    if format != "tensorflow" and (config is not None or model_type is not None):
        raise ConfigError(f"config and model_type are for TensorFlow's checkpoints, not for {format}")
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
    if format == "pytorch-quantization":
        record = {"method": "imported", "source": "pytorch-quantization"}
        save(found.model, output, recipe=load_recipe("qdqbert"), calibration=record, source=beside)
    else:
        with atomic_directory(Path(output), kind="checkpoint") as folder:
            save_model(found.model, folder)
            copy_tokenizer(beside, folder)
    return found.report
