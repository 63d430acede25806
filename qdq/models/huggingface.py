"""Read and write Hugging Face model directories, without transformers.

A directory holds ``config.json`` and the weights: ``model.safetensors``, or shards that
``model.safetensors.index.json`` names, or ``pytorch_model.bin`` (loaded without running pickled code). Loading is
strict: the tensors must be exactly those of the model, in its shapes. These differences are accepted:

1. One name of a pair of tied weights or of a language-model bias is missing.
2. The checkpoint has heads or a pooler of the same family that the model does not have.
3. It has the buffers ``position_ids`` and ``token_type_ids`` of old releases.
4. The weight and bias of a LayerNorm are called ``gamma`` and ``beta``, or the base prefix is missing.
5. A QDQBERT checkpoint has the ranges of its quantizers, which are not weights.
6. A feature extractor has no pooler: the model then has none either.

With a warning, names are also read inside of wrappers; see :mod:`qdq.models.stored_names`.
"""

import os
import secrets
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from qdq.errors import CheckpointError, ConfigError, StorageError
from qdq.models.attention import AttentionImplementation
from qdq.models.checkpoint_keys import parameter_keys, second_bias_key, upstream_state
from qdq.models.config import ModelConfig
from qdq.models.config_fields import check_fields, written_fields
from qdq.models.folder_diagnosis import describe_missing_config
from qdq.models.model import Model
from qdq.models.registry import configure, construct, fields_of, task_of
from qdq.models.stored_types import check_stored_types, type_name
from qdq.models.tensor_problems import describe_missing_model_type
from qdq.models.weight_files import read_tensors
from qdq.models.weights import holds_pooler, leave_out_pooler, load_weights, read_weights, untie
from qdq.storage import missing_directory, read_json, write_json

__all__ = [
    "config_to_json",
    "load_model",
    "load_weights",
    "parameter_keys",
    "read_config",
    "read_tensors",
    "read_weights",
    "save_model",
    "upstream_state",
]


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
    """Read the configuration of a model directory.

    Args:
        path: The directory, or a JSON file.

    Raises:
        CheckpointError: The directory does not exist, or has no ``config.json``.
        ConfigError: The file is not JSON, the ``model_type`` is unknown, or values are invalid. The message lists all
            of them.

    Fields that transformers follows otherwise have a warning; see :mod:`qdq.models.config_fields`.
    """
    path = Path(path)
    if path.suffix != ".json":
        if not path.is_dir():
            raise CheckpointError(missing_directory(path, "give the directory of a downloaded checkpoint"))
        path = path / "config.json"
    if not path.is_file():
        raise CheckpointError(describe_missing_config(path.parent))
    values = read_json(path, error=ConfigError)
    missing_type = "model_type" not in values
    try:
        config = configure(values.pop("model_type", None), **values)
        check_fields(values, config, source=str(path))
    except ConfigError as error:
        hint = describe_missing_model_type(path.parent) if missing_type else ""
        raise ConfigError(f"{path}: {error}{hint}") from error
    return config


def config_to_json(config: ModelConfig, task: str | None = None, *, dtype: str = "float32") -> dict[str, Any]:
    """Return the content of ``config.json`` for a model, which describes what is written beside it.

    Fields have the names under which they were read. Those that the family does not use are unchanged, but for those
    that describe the file that was read; see :func:`qdq.models.config_fields.written_fields`.

    Args:
        config: The configuration.
        task: The task of the model, which determines ``architectures``. None takes the configured one.
        dtype: The type of the weights that are written, under torch's name.

    Raises:
        ConfigError: The activation is a function, which JSON cannot express.
    """
    if not isinstance(config.hidden_act, str):
        raise ConfigError("hidden_act is a function; only a named activation can be written to config.json")
    values = written_fields(config.extra, dtype)
    defaults = configure(config.model_type)
    upstream = {own: theirs for theirs, own in reversed([*config.names.items()])}  # the first name of each
    for name in sorted(fields_of(config)):
        value = getattr(config, name)
        # Sizes are always written. Flags, tables and None are written only if they differ from the default.
        if value != getattr(defaults, name) or not isinstance(value, bool | Mapping | None):
            values[config.read_as.get(name) or upstream.get(name, name)] = value
    labels = config.id2label or {index: f"LABEL_{index}" for index in range(config.num_labels)}
    for name in ("num_labels", "id2label", "label2id"):
        values.pop(name, None)
    name, entry = task_of(config, task)
    # A question-answering head has two outputs for every token. transformers would make one for every leftover label.
    leftover = name == "question-answering" and config.num_labels != 2
    if (config.num_labels != 2 or config.id2label is not None) and not leftover:
        values |= {"id2label": labels, "label2id": {label: index for index, label in labels.items()}}
    return {**values, "model_type": config.model_type, "architectures": [entry.name]}


def load_model(
    path: str | os.PathLike[str],
    task: str | None = None,
    *,
    attn_implementation: AttentionImplementation = "eager",
    allow_missing: Collection[str] = (),
    ignore: tuple[str, ...] = (),
    ignore_keys: Collection[str] = (),
    dtype: torch.dtype = torch.float32,
    config: ModelConfig | None = None,
    seed: int | None = None,
) -> Model:
    """Load the model of a directory, in evaluation mode. The weights are mapped from the file, not copied.

    Args:
        path: A Hugging Face model directory.
        task: The task, which determines the head. None takes the one that ``architectures`` in ``config.json`` names.
        attn_implementation: ``"eager"`` or ``"sdpa"``.
        allow_missing: Top-level modules that may be missing and are then initialized. ``{"head"}`` puts a new head on
            a bare encoder.
        ignore: Endings of keys to skip, for checkpoints that hold more than weights.
        ignore_keys: Patterns of keys to leave out, such as ``fit_dense.*``.
        dtype: The dtype of the parameters. The file may hold another floating type.
        config: Replaces the directory's ``config.json``.
        seed: Seed of the weights that are drawn; None takes torch's random numbers as they come.

    Raises:
        CheckpointError: Files are missing or damaged, or tensors are missing, unexpected or misshaped.
        ConfigError: The ``config.json`` is invalid, or the family does not have the task.
    """
    config = read_config(path) if config is None else config
    try:
        model = construct(config, task, attn_implementation=attn_implementation)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    tensors = read_weights(path, config, ignore_keys=ignore_keys)
    check_stored_types(config, tensors, source=str(path))
    if "pooler" not in allow_missing and not holds_pooler(model, tensors):
        leave_out_pooler(model)
    untie(model, tensors, str(path))
    load_weights(
        model,
        tensors,
        source=str(path),
        allow_missing=allow_missing,
        ignore=ignore,
        dtype=dtype,
        seed=seed,
    )
    return model.eval()


def save_model(
    model: Model, path: str | os.PathLike[str], *, extra: Mapping[str, Tensor] = MappingProxyType({})
) -> None:
    """Write ``config.json`` and ``model.safetensors`` with upstream's keys.

    Args:
        model: The model.
        path: The directory.
        extra: More tensors to write into the same file.

    Raises:
        StorageError: The directory cannot be written.
        ConfigError: The activation is a function, which ``config.json`` cannot express.
        CheckpointError: A parameter has no name in checkpoints of the family.
    """
    path = Path(path)
    state = {key: tensor.contiguous() for key, tensor in upstream_state(model).items()}
    # Upstream stores the bias of a language-model head twice. Write both, so that tied and untied models find it.
    state |= {copy: tensor.clone() for key, tensor in state.items() if (copy := second_bias_key(key))}
    state |= extra
    dtype = type_name(next(model.parameters()).dtype)
    values = dict(sorted(config_to_json(model.config, model.task, dtype=dtype).items()))
    # Write another file first, because the weights may be mapped from the one to replace.
    partial = path / f".model.safetensors.{secrets.token_hex(4)}"
    try:
        path.mkdir(parents=True, exist_ok=True)
        save_file(state, partial, metadata={"format": "pt"})
        partial.replace(path / "model.safetensors")
    except (OSError, safetensors.SafetensorError) as error:
        raise StorageError(f"{path}: cannot write the model ({error})") from error
    finally:
        if path.is_dir():
            partial.unlink(missing_ok=True)
    write_json(path / "config.json", values)
