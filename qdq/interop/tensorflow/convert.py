"""Convert a checkpoint of TensorFlow."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qdq.errors import ConfigError
from qdq.interop.conversion import Conversion, Converted, Mapped, Skipped, build_model
from qdq.interop.tensorflow.names import NOT_A_WEIGHT, key_of, needs_transposing
from qdq.interop.tensorflow.reader import checkpoint_prefix, read_variables
from qdq.models.registry import FAMILIES, configure, family_of
from qdq.storage import read_json

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from numpy.typing import NDArray

__all__ = ["convert", "from_variables"]

_FAMILIES = ("bert", "qdqbert", "albert", "megatron-bert", "realm")
"""Families whose checkpoints the programs of Google and NVIDIA write."""

_CONFIGS = ("config.json", "bert_config.json", "albert_config.json")


def convert(
    source: str | Path,
    *,
    config: str | Path | None = None,
    model_type: str | None = None,
    task: str | None = None,
    overrides: Mapping[str, Any] | None = None,
) -> Converted:
    """Convert a checkpoint of TensorFlow.

    Args:
        source: The common prefix of the checkpoint's files, one of the files, or a directory with one checkpoint.
        config: A JSON file with the sizes; by default config.json, bert_config.json or albert_config.json beside the
            checkpoint.
        model_type: The family; by default that of the configuration, or albert if it has ALBERT's fields, or bert.
        task: The task of the model; by default the one that uses all heads of the checkpoint.
        overrides: Fields of the configuration that override those of the file.

    Returns:
        The model and the report.

    Raises:
        CheckpointError: The checkpoint is damaged, or variables are unknown, missing or of another shape.
        ConfigError: There is no configuration, or it is not supported.
        MissingPackageError: TensorFlow is not installed.
    """
    prefix = checkpoint_prefix(source)
    values = _read_config(prefix.parent if config is None else Path(config))
    said = model_type or values.pop("model_type", None) or ("albert" if "embedding_size" in values else "bert")
    values.pop("model_type", None)
    values |= overrides or {}
    family_of(said)  # an unknown family is reported before a large file is read
    return from_variables(read_variables(prefix), said, values, task=task, source=str(prefix))


def _read_config(path: Path) -> dict[str, Any]:
    if path.is_dir():
        found = [path / name for name in _CONFIGS if (path / name).is_file()]
        if not found:
            raise ConfigError(f"{path}: none of {', '.join(_CONFIGS)} is there: name the configuration (--config FILE)")
        path = found[0]
    return read_json(path, error=ConfigError)


def from_variables(
    variables: Mapping[str, NDArray[Any]],
    model_type: str,
    values: Mapping[str, Any],
    *,
    task: str | None = None,
    source: str = "checkpoint",
) -> Converted:
    """Convert variables that have been read.

    Args:
        variables: The variables by their names in TensorFlow.
        model_type: The family.
        values: The fields of the configuration with the names of transformers.
        task: The task of the model; by default the one that uses all heads of the checkpoint.
        source: The name of the checkpoint, for messages.

    Returns:
        The model and the report.

    Raises:
        CheckpointError: Variables are unknown, missing or of another shape.
        ConfigError: A value is not supported, or the family has no checkpoints of TensorFlow.
    """
    if model_type not in _FAMILIES:
        raise ConfigError(f"there are no TensorFlow checkpoints of {model_type}")
    report = Conversion(source, "tensorflow")
    task = task or _task(variables.keys(), model_type)
    if task not in family_of(model_type).tasks:
        raise ConfigError(f"no task '{task}': '{model_type}' has {', '.join(family_of(model_type).tasks)}")
    # The number of labels is only known from the shape of the classifier.
    if task in ("sequence-classification", "token-classification") and "output_weights" in variables:
        values = {"num_labels": len(variables["output_weights"]), **values}
    config = configure(model_type, **values)

    elsewhere = [other for other in family_of(model_type).tasks if other != task]
    state: dict[str, torch.Tensor] = {}
    for name, array in variables.items():
        shape = tuple(array.shape)
        if NOT_A_WEIGHT & {*name.split("/")}:
            report.skipped.append(Skipped(name, "optimizer state, not a weight", shape))
            continue
        key = key_of(name, model_type, task)
        if key is None:
            if any(key_of(name, model_type, other) is not None for other in elsewhere):
                report.skipped.append(Skipped(name, "of another component of the model: choose it by the task", shape))
            else:
                report.problems.append(f"{name} is unknown")
        elif key in state:
            report.problems.append(f"{name} would be {key}, which another variable is")
        elif array.dtype.kind != "f":
            report.problems.append(f"{name} is {array.dtype}, must be floating point")
        else:
            turned = needs_transposing(name)
            # A copy, because TensorFlow owns the memory and a transposed array is not contiguous.
            state[key] = torch.tensor(array.T.copy() if turned else array)
            report.mapped.append(Mapped(name, shape, (key,), "transposed" if turned else ""))
    report.check()
    return Converted(build_model(config, task, state, report), report)


def _task(names: Collection[str], model_type: str) -> str:
    """Return the task that uses all heads of the checkpoint."""

    def has(beginning: str) -> bool:
        return any(name.startswith((beginning, f"module/{beginning}")) for name in names)

    if model_type == "realm":
        return "question-answering" if has("reader/") else "retrieval" if has("module/module/") else "masked-lm"
    if has("cls/squad/"):
        return "question-answering"
    if has("cls/predictions/"):
        both = has("cls/seq_relationship/") and "pre-training" in FAMILIES[model_type].tasks
        return "pre-training" if both else "masked-lm"
    if "output_weights" in names:
        return "sequence-classification"
    return "next-sentence" if has("cls/seq_relationship/") and model_type != "albert" else "feature-extraction"
