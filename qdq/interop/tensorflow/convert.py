"""Convert a checkpoint of TensorFlow."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from qdq.errors import CheckpointError, ConfigError
from qdq.interop.conversion import Conversion, Converted, Mapped, Skipped, build_model
from qdq.interop.tensorflow.names import heads_elsewhere, is_of_objects, key_of, needs_transposing, not_a_weight
from qdq.interop.tensorflow.reader import OF_OBJECTS, checkpoint_prefix, folders_of, read_variables
from qdq.models.registry import FAMILIES, configure, family_of
from qdq.storage import read_json, refuse_pointer

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

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
        source: The common prefix of the checkpoint's files, one of the files, a directory with one checkpoint, or a
            module of TensorFlow Hub.
        config: A JSON file with the sizes; by default config.json, bert_config.json or albert_config.json beside the
            checkpoint, or in the ``assets`` of the module.
        model_type: The family; by default that of the configuration, or albert if it has ALBERT's fields, or bert.
        task: The task of the model; by default the one that uses all heads of the checkpoint.
        overrides: Fields of the configuration that override those of the file.

    Returns:
        The model and the report.

    Raises:
        CheckpointError: The checkpoint is damaged or object-based, or variables are unknown, missing or of another
            shape.
        ConfigError: There is no configuration, or it is not supported.
        MissingPackageError: TensorFlow is not installed.
    """
    prefix = checkpoint_prefix(source)
    folders = folders_of(prefix)
    if config is not None and not Path(config).is_dir():
        values = _read(Path(config))
    else:
        values = _read_config(folders if config is None else [Path(config)])
    said = model_type or values.pop("model_type", None) or ("albert" if "embedding_size" in values else "bert")
    values.pop("model_type", None)
    values |= overrides or {}
    family_of(said)  # an unknown family is reported before a large file is read
    found = from_variables(read_variables(prefix), said, values, task=task, source=str(prefix))
    return replace(found, folders=folders)


def _read_config(places: Sequence[Path]) -> dict[str, Any]:
    """Read the first file with the name of a configuration in a few directories."""
    found = [folder / name for folder in places for name in _CONFIGS if (folder / name).is_file()]
    if not found:
        where = " or ".join(str(folder) for folder in places if folder.is_dir())
        raise ConfigError(f"{where}: none of {', '.join(_CONFIGS)} is there: name the configuration (--config FILE)")
    return _read(found[0])


def _read(path: Path) -> dict[str, Any]:
    refuse_pointer(path, ConfigError)
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
        CheckpointError: The checkpoint is object-based, or variables are unknown, missing or of another shape.
        ConfigError: A value is not supported, or the family has no checkpoints of TensorFlow.
    """
    if model_type not in _FAMILIES:
        raise ConfigError(f"there are no TensorFlow checkpoints of {model_type}")
    if is_of_objects(variables):
        raise CheckpointError(f"{source}: {OF_OBJECTS}")
    report = Conversion(source, "tensorflow")
    task = task or _task(variables.keys(), model_type)
    if task not in family_of(model_type).tasks:
        raise ConfigError(f"no task '{task}': '{model_type}' has {', '.join(family_of(model_type).tasks)}")
    _tell_about_heads(variables.keys(), model_type, task, report)
    # The number of labels is only known from the shape of the classifier.
    if task in ("sequence-classification", "token-classification") and "output_weights" in variables:
        values = {"num_labels": len(variables["output_weights"]), **values}
    config = configure(model_type, **values)
    if model_type == "albert" and config.hidden_act == "gelu":
        report.notes.append(
            "hidden_act is gelu, as the configuration says; ALBERT's program computes it with tanh, whose values "
            "differ by up to 0.0005, and published ALBERTs have --set hidden_act=gelu_new"
        )

    elsewhere = [other for other in family_of(model_type).tasks if other != task]
    state: dict[str, torch.Tensor] = {}
    for name, value in variables.items():
        array = _as_array(value)
        shape = tuple(array.shape)
        if reason := not_a_weight(name, variables.keys()):
            report.skipped.append(Skipped(name, reason, shape))
            continue
        if heads_elsewhere(name) and model_type == "albert":
            report.skipped.append(Skipped(name, "of a head that no model of transformers has", shape))
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


def _as_array(value: Any) -> NDArray[Any]:
    """Return a variable as an array of a dtype that NumPy itself has."""
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.name == "bfloat16" else array


def _tell_about_heads(names: Collection[str], model_type: str, task: str, report: Conversion) -> None:
    """Add a note about the heads of ALBERT's ``run_squad.py``, or refuse the task that seems to need them."""
    if model_type != "albert" or not any(map(heads_elsewhere, names)):
        return
    what = "the heads for questions (start_logits, end_logits, answer_class) of ALBERT's run_squad.py"
    if task == "question-answering" and not any(name.startswith("cls/squad/") for name in names):
        raise CheckpointError(
            f"{report.source}: {what} compute something else than any model of transformers: --task feature-extraction "
            "takes the encoder, for which qdq finetune trains a new head"
        )
    report.notes.append(f"{what} are left out: no model of transformers has them")


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
