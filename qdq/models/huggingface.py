"""Reading and writing Hugging Face model directories, without transformers.

A directory holds ``config.json`` and the weights: ``model.safetensors``, or shards that
``model.safetensors.index.json`` names, or ``pytorch_model.bin`` (loaded without running pickled code). Loading is
strict: every tensor that the model needs must be there in its shape, and nothing else, except for

1. either name of a tied pair, and the copy of a language-model bias;
2. heads and pooler of the same family that this model has not;
3. the buffers ``position_ids`` and ``token_type_ids`` of old releases;
4. ``gamma`` and ``beta`` for the weight and bias of a LayerNorm, and the base prefix, present or not;
5. the ranges of quantizers in a QDQBERT checkpoint, which are no weights.
"""

import os
import pickle
import re
import secrets
import zipfile
from collections.abc import Collection, Mapping
from itertools import chain
from pathlib import Path
from types import MappingProxyType
from typing import Any

import safetensors
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from qdq.errors import CheckpointError, ConfigError, StorageError, describe_problems
from qdq.models.attention import AttentionImplementation
from qdq.models.config import ModelConfig
from qdq.models.keymap import Key, name_of, part_of, shape_of_whole, translate
from qdq.models.model import Model, fresh_parameter
from qdq.models.registry import configure, construct, family_of, fields_of, task_of
from qdq.storage import missing_directory, read_json, write_json

_WEIGHT_FILES = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"
_OLD_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
    """The configuration in ``path``, a model directory or a JSON file.

    Raises:
        CheckpointError: no such directory, or no ``config.json`` in it.
        ConfigError: not JSON, an unknown ``model_type``, or values that cannot be followed (all of them are listed).
    """
    path = Path(path)
    if path.suffix != ".json":
        if not path.is_dir():
            raise CheckpointError(missing_directory(path, "give the directory of a downloaded checkpoint"))
        path = path / "config.json"
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; a model directory needs a config.json")
    values = read_json(path, error=ConfigError)
    try:
        return configure(values.pop("model_type", None), **values)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def config_to_json(config: ModelConfig, task: str | None = None) -> dict[str, Any]:
    """What belongs into ``config.json`` for ``config`` under ``task``: what was read, and each field that counts."""
    if not isinstance(config.hidden_act, str):
        raise ConfigError("hidden_act is a function; only a named activation can be written to config.json")
    values: dict[str, Any] = dict(config.extra)
    usual = configure(config.model_type)
    for name in sorted(fields_of(config)):
        value = getattr(config, name)
        # Of flags, tables and what may be absent, only what is unusual is worth a line.
        if value != getattr(usual, name) or not isinstance(value, bool | Mapping | None):
            values[config.read_as.get(name, name)] = value
    labels = config.id2label or {index: f"LABEL_{index}" for index in range(config.num_labels)}
    values.pop("num_labels", None)
    if config.num_labels != 2 or config.id2label is not None:
        values |= {"id2label": labels, "label2id": config.label2id or {label: index for index, label in labels.items()}}
    return {**values, "model_type": config.model_type, "architectures": [task_of(config, task)[1].name]}


# --- weights: files ---


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """All tensors of the model directory ``path`` by their names in the files, mapped into memory where possible.

    Raises:
        CheckpointError: no weights, missing shards, a damaged file, or a pickle that wants to run code.
    """
    path = Path(path)
    found = next((name for name in _WEIGHT_FILES if (path / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{path}: no weights; expected one of {', '.join(_WEIGHT_FILES)}")
    files = _shards(path / found) if found.endswith(".index.json") else [found]
    return {name: tensor for file in files for name, tensor in _read_file(path / file).items()}


def _shards(index: Path) -> list[str]:
    """The shard files that ``index`` names, all of them present."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: no weight_map from tensor names to files")
    names = sorted(set(weight_map.values()))
    # A name is a file beside the index, never a path to somewhere else.
    missing = [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(describe_problems(str(index), [f"shard {name} is missing" for name in missing]))
    return names


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"{path}: damaged or incomplete safetensors file ({error})") from error
        except OSError as error:
            raise StorageError(f"{path}: {error}") from error
    try:
        # Files of torch < 1.6 are no archives and cannot be mapped.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = "the pickle holds more than tensors and could run code; convert it to safetensors"
        raise CheckpointError(f"{path}: refused, {reason}") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: damaged or incomplete PyTorch file ({error})") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: not a state dict of tensors")
    return state


# --- weights: names ---


def parameter_keys(model: Model) -> dict[str, tuple[Key, ...]]:
    """Return every name of every parameter of ``model`` with upstream's keys for it, without the base prefix.

    Of several keys the first one is that which upstream computes with, the last one that which it writes.
    """
    family, task = family_of(model.config.model_type), task_of(model.config, model.task)[1]
    keys, order = {**family.keys, **task.keys}, model.config.layer_order
    found: dict[str, tuple[Key, ...]] = {}
    for name in chain.from_iterable(model.shared_names()):
        try:
            key = translate(name, keys, order)
        except KeyError as error:
            raise CheckpointError(f"parameter {name} has no name in a '{family.model_type}' checkpoint") from error
        copy = _bias_copy(name_of(key))
        found[name] = (key,) if copy is None else (copy, key)
    return found


def _bias_copy(key: str) -> str | None:
    """The second key under which upstream stores the bias of a language-model head."""
    stem, _, leaf = key.rpartition(".")
    return f"{stem}.decoder.bias" if leaf == "bias" and stem.endswith(("predictions", "lm_head")) else None


def upstream_state(model: Model) -> dict[str, Tensor]:
    """Return the weights of ``model`` under upstream's keys, each tied weight once.

    The tensors are not copied, but for those that upstream stores together: they are joined.
    """
    family, task = family_of(model.config.model_type), task_of(model.config, model.task)[1]
    inside = {"embeddings", "encoder", "pooler"} if task.prefixed else set()
    keys = parameter_keys(model)
    state: dict[str, Tensor] = {}
    parts: dict[str, list[Tensor]] = {}
    for name, *_ in model.shared_names():
        prefix = f"{family.prefix}." if name.partition(".")[0] in inside else ""
        key, tensor = keys[name][-1], model.get_parameter(name).detach()
        whole = prefix + name_of(key)
        if isinstance(key, str):
            state[whole] = tensor
        else:
            parts.setdefault(whole, [tensor] * key.count)[key.index] = tensor
    return state | {whole: torch.cat(tensors) for whole, tensors in parts.items()}


def load_weights(
    model: Model,
    tensors: Mapping[str, Tensor],
    *,
    source: str = "checkpoint",
    allow_missing: Collection[str] = (),
    ignore: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
) -> None:
    """Make ``tensors`` (upstream's keys) the parameters of ``model``, without a copy where the dtype is right.

    The model may live on the meta device. Errors call the checkpoint ``source``; for the others see ``load_model``.

    Raises:
        CheckpointError: with the lists of missing, unexpected and misshaped keys, as far as they are not empty.
    """
    family, task = family_of(model.config.model_type), task_of(model.config, model.task)[1]
    given: dict[str, tuple[str, Tensor]] = {}
    for key, tensor in tensors.items():
        if not key.endswith((*_OLD_BUFFERS, *family.beside, *ignore)):
            today = re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", key))
            given[today.removeprefix(f"{family.prefix}.")] = (key, tensor)

    keys = parameter_keys(model)
    missing, misshaped, state, absent, used = [], [], {}, set(), set()
    for names in model.shared_names():
        top, wanted = names[0].partition(".")[0], model.get_parameter(names[0])
        present = [key for name in names for key in keys[name] if name_of(key) in given]
        used |= {name_of(key) for key in present}
        if present:
            key, tensor = given[name_of(present[0])]
            shape = shape_of_whole(present[0], wanted.shape)
            if [*tensor.shape] != shape or not tensor.is_floating_point():
                found = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
                misshaped.append(f"{key} is {found}, must be {shape} float")
                continue
            weight = part_of(present[0], tensor).to(dtype)
            parameter = nn.Parameter(weight, requires_grad=wanted.requires_grad)
        elif top in allow_missing or names[0].startswith(task.unused):
            parameter = fresh_parameter(model, names[0], dtype)
        else:
            missing.append(name_of(keys[names[0]][-1]))
            absent.add(top)
            continue
        state.update(dict.fromkeys(names, parameter))

    elsewhere = {name_of(key) for other in family.tasks.values() for key in other.keys.values()}
    elsewhere |= {name_of(key) for module, key in family.keys.items() if module.startswith("pooler.")}
    elsewhere |= set(filter(None, map(_bias_copy, elsewhere)))
    unexpected = [
        key
        for short, (key, _) in given.items()
        if short not in used and not {short, short.rpartition(".")[0]} & elsewhere
    ]
    missing, misshaped = list(dict.fromkeys(missing)), list(dict.fromkeys(misshaped))
    problems = [
        f"{len(names)} {what}: {', '.join(names[:10])}{f', and {len(names) - 10} more' if len(names) > 10 else ''}"
        for what, names in (("missing", missing), ("unexpected", unexpected), ("with another shape", misshaped))
        if names
    ]
    if absent and absent <= {"head", "pooler"}:
        problems[0] += f" (allow_missing={sorted(absent)} starts them afresh)"
    if problems:
        where = f"{source}: the tensors do not fit {model.config.model_type} {model.task}"
        raise CheckpointError(describe_problems(where, problems))
    model.assign(state)


def load_model(
    path: str | os.PathLike[str],
    task: str | None = None,
    *,
    attn_implementation: AttentionImplementation = "eager",
    allow_missing: Collection[str] = (),
    ignore: tuple[str, ...] = (),
    dtype: torch.dtype = torch.float32,
    config: ModelConfig | None = None,
) -> Model:
    """The model in the directory ``path``, in evaluation mode. The weights are mapped from the file, not copied.

    Args:
        path: a Hugging Face model directory.
        task: which head; None takes the one named by ``architectures`` in ``config.json``.
        attn_implementation: ``"eager"`` or ``"sdpa"``.
        allow_missing: top-level modules that may be absent and are then initialised: ``{"head"}`` puts a new head on a
            bare encoder.
        ignore: endings of keys to skip, for checkpoints that carry more than weights.
        dtype: of the parameters; the file may hold another floating type.
        config: in place of the directory's ``config.json``.

    Raises:
        CheckpointError: files missing or damaged, tensors missing, unexpected or misshaped.
        ConfigError: a ``config.json`` that cannot be followed, or a task that the family does not have.
    """
    config = read_config(path) if config is None else config
    try:
        model = construct(config, task, attn_implementation=attn_implementation)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    tensors = read_tensors(path)
    load_weights(model, tensors, source=str(path), allow_missing=allow_missing, ignore=ignore, dtype=dtype)
    return model.eval()


def save_model(
    model: Model, path: str | os.PathLike[str], *, extra: Mapping[str, Tensor] = MappingProxyType({})
) -> None:
    """Write ``config.json`` and ``model.safetensors`` with upstream's keys into the directory ``path``.

    Each file is written beside its place and then moved there, so a model may be saved over its own files.

    Args:
        model: to write.
        path: of the directory.
        extra: tensors to write beside the weights.

    Raises:
        StorageError: the directory cannot be written.
    """
    path = Path(path)
    state = {key: tensor.contiguous() for key, tensor in upstream_state(model).items()}
    # Upstream keeps this bias under two names; give both, so that tied and untied models find it.
    state |= {copy: tensor.clone() for key, tensor in state.items() if (copy := _bias_copy(key))}
    state |= extra
    values = dict(sorted(config_to_json(model.config, model.task).items()))
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
