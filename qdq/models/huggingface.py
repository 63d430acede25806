"""Read and write Hugging Face model directories, without transformers.

A directory holds ``config.json`` and the weights: ``model.safetensors``, or shards that
``model.safetensors.index.json`` names, or ``pytorch_model.bin`` (loaded without running pickled code). Loading is
strict: the tensors must be exactly those of the model, in its shapes. These differences are accepted:

1. One name of a pair of tied weights or of a language-model bias is missing.
2. The checkpoint has heads or a pooler of the same family that the model does not have.
3. It has the buffers ``position_ids`` and ``token_type_ids`` of old releases.
4. The weight and bias of a LayerNorm are called ``gamma`` and ``beta``, or the base prefix is missing.
5. A QDQBERT checkpoint has the ranges of its quantizers, which are not weights.
"""

import os
import pickle
import re
import secrets
import zipfile
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
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
from qdq.models.family import Family
from qdq.models.keymap import Key, name_of, parts_of, select_part, shape_of_whole, translate
from qdq.models.model import Model, fresh_parameter
from qdq.models.registry import configure, construct, family_of, fields_of, task_of
from qdq.storage import missing_directory, read_json, write_json

_WEIGHT_FILES = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json"
_OLD_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def read_config(path: str | os.PathLike[str]) -> ModelConfig:
    """Read the configuration of a model directory.

    Args:
        path: The directory, or a JSON file.

    Raises:
        CheckpointError: The directory does not exist, or has no ``config.json``.
        ConfigError: The file is not JSON, the ``model_type`` is unknown, or values are invalid. The message lists all
            of them.
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
    """Return the content of ``config.json`` for a model.

    Fields have the names under which they were read. Those that the family does not use are unchanged.

    Args:
        config: The configuration.
        task: The task of the model, which determines ``architectures``. None takes the configured one.

    Raises:
        ConfigError: The activation is a function, which JSON cannot express.
    """
    if not isinstance(config.hidden_act, str):
        raise ConfigError("hidden_act is a function; only a named activation can be written to config.json")
    values: dict[str, Any] = dict(config.extra)
    defaults = configure(config.model_type)
    upstream = {own: theirs for theirs, own in reversed([*config.names.items()])}  # the first name of each
    for name in sorted(fields_of(config)):
        value = getattr(config, name)
        # Sizes are always written. Flags, tables and None are written only if they differ from the default.
        if value != getattr(defaults, name) or not isinstance(value, bool | Mapping | None):
            values[config.read_as.get(name) or upstream.get(name, name)] = value
    labels = config.id2label or {index: f"LABEL_{index}" for index in range(config.num_labels)}
    values.pop("num_labels", None)
    if config.num_labels != 2 or config.id2label is not None:
        values |= {"id2label": labels, "label2id": config.label2id or {label: index for index, label in labels.items()}}
    return {**values, "model_type": config.model_type, "architectures": [task_of(config, task)[1].name]}


# --- weights: files ---


def read_tensors(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Read all tensors of a model directory. They are mapped into memory, not copied, if the format allows it.

    Args:
        path: The directory.

    Returns:
        The tensors by their names in the files.

    Raises:
        CheckpointError: There are no weights, shards are missing, a file is damaged, or a pickle would run code.
        StorageError: A file cannot be read.
    """
    path = Path(path)
    found = next((name for name in _WEIGHT_FILES if (path / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{path}: no weights; expected one of {', '.join(_WEIGHT_FILES)}")
    files = _shard_files(path / found) if found.endswith(".index.json") else [found]
    return {name: tensor for file in files for name, tensor in _read_file(path / file).items()}


def _shard_files(index: Path) -> list[str]:
    """Return the names of the shard files in an index, and check that all of them exist."""
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise CheckpointError(f"{index}: no weight_map from tensor names to files")
    names = sorted(set(weight_map.values()))
    # A name with a path is refused, so that a checkpoint cannot make us read files outside its directory.
    missing = [name for name in names if Path(name).name != name or not (index.parent / name).is_file()]
    if missing:
        raise CheckpointError(describe_problems(str(index), [f"shard {name} is missing" for name in missing]))
    return names


def _read_file(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        try:
            return load_file(path)
        except safetensors.SafetensorError as error:
            raise CheckpointError(f"{path}: damaged or incomplete safetensors file ({error}); copy it again") from error
        except OSError as error:
            raise StorageError(f"{path}: {error}") from error
    try:
        # Files of torch before 1.6 are not zip archives and cannot be mapped.
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except pickle.UnpicklingError as error:
        reason = "the pickle holds more than tensors and could run code; convert it to safetensors"
        raise CheckpointError(f"{path}: refused, {reason}") from error
    except (RuntimeError, EOFError, ValueError, KeyError) as error:
        raise CheckpointError(f"{path}: damaged or incomplete PyTorch file ({error}); copy it again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise CheckpointError(f"{path}: not a state dict of tensors")
    return state


# --- weights: names ---


def parameter_keys(model: Model) -> dict[str, tuple[Key, ...]]:
    """Return upstream's keys of every parameter, without the base prefix.

    A bias that upstream stores twice has two keys: first the one that upstream computes with, then the one that it
    writes.

    Args:
        model: The model. All names of a shared parameter are keys of the result.

    Raises:
        CheckpointError: A parameter is not in the key table, because it was added to the model. Or the table gives two
            parameters one key, or not all parts of a fused tensor.
    """
    family, task = family_of(model.config.model_type), task_of(model.config, model.task)[1]
    keys, order = {**family.keys, **task.keys}, model.config.layer_order
    found: dict[str, tuple[Key, ...]] = {}
    for name in chain.from_iterable(model.shared_names()):
        try:
            key = translate(name, keys, order)
        except KeyError as error:
            raise CheckpointError(f"parameter {name} has no name in a '{family.model_type}' checkpoint") from error
        second = _second_bias_key(name_of(key))
        found[name] = (key,) if second is None else (second, key)
    _check_distinct(found, model)
    return found


def _check_distinct(keys: Mapping[str, tuple[Key, ...]], model: Model) -> None:
    """Refuse a key table by which one weight would overwrite another in a checkpoint."""
    owners: dict[str, dict[int, str]] = {}
    counts: dict[str, int] = {}
    problems = []
    for name, *_ in model.shared_names():
        key = keys[name][-1]
        whole, index, count = name_of(key), (0 if isinstance(key, str) else key.index), parts_of(key)
        others = owners.setdefault(whole, {})
        if index in others or counts.setdefault(whole, count) != count:
            first = others.get(index) or next(iter(others.values()))
            problems.append(f"{name} and {first} are both {whole}")
        others[index] = name
    problems += [
        f"{whole} has {counts[whole]} parts, the model only {', '.join(others.values())}"
        for whole, others in owners.items()
        if len(others) < counts[whole] and not problems
    ]
    if problems:
        what = f"key table of model_type '{model.config.model_type}'"
        raise CheckpointError(describe_problems(what, problems))


def _second_bias_key(key: str) -> str | None:
    """Return the second key of a language-model bias: upstream stores it once for the head, once for the decoder."""
    stem, _, leaf = key.rpartition(".")
    return f"{stem}.decoder.bias" if leaf == "bias" and stem.endswith(("predictions", "lm_head")) else None


def upstream_state(model: Model) -> dict[str, Tensor]:
    """Return the weights of a model under upstream's keys, each tied weight once.

    Only weights that upstream fuses to one tensor are copied.
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
    ignore_keys: Collection[str] = (),
    dtype: torch.dtype = torch.float32,
    seed: int | None = None,
) -> None:
    """Make tensors the parameters of a model. A tensor is copied only if its dtype changes.

    Args:
        model: The model, which may be on the meta device.
        tensors: The tensors by upstream's keys.
        source: What messages call the checkpoint.
        allow_missing: Top-level modules that may be missing and are then initialized.
        ignore: Endings of keys to skip.
        ignore_keys: Patterns of keys to leave out, such as ``fit_dense.*``.
        dtype: The dtype of the parameters.
        seed: Seed of the weights that are drawn; None takes torch's random numbers as they come.

    Raises:
        CheckpointError: Tensors are missing, unexpected or misshaped. The message lists them.
    """
    family = family_of(model.config.model_type)
    tensors = _without(tensors, ignore_keys)
    given = _by_current_key(tensors, family, ignore)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    keys = parameter_keys(model)
    problems = _Problems()
    state: dict[str, nn.Parameter] = {}
    used: set[str] = set()
    unused = task_of(model.config, model.task)[1].unused
    for names in model.shared_names():
        top, wanted = names[0].partition(".")[0], model.get_parameter(names[0])
        present = [key for name in names for key in keys[name] if name_of(key) in given]
        used |= {name_of(key) for key in present}
        if present:
            # If the checkpoint has several of the keys, upstream computes with the first one.
            key, tensor = given[name_of(present[0])]
            shape = shape_of_whole(present[0], wanted.shape)
            if [*tensor.shape] != shape or not tensor.is_floating_point():
                found = f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
                problems.misshaped.append(f"{key} is {found}, must be {shape} float")
                continue
            weight = select_part(present[0], tensor).to(dtype)
            parameter = nn.Parameter(weight, requires_grad=wanted.requires_grad)
        elif top in allow_missing or names[0].startswith(unused):
            parameter = fresh_parameter(model, names[0], dtype, generator)
        else:
            problems.missing.append(name_of(keys[names[0]][-1]))
            problems.incomplete_modules.add(top)
            continue
        # All names get the same object, so that tied weights stay tied.
        state.update(dict.fromkeys(names, parameter))
    problems.unexpected = _unexpected(given, used, family)
    if lines := problems.lines():
        where = f"{source}: the tensors do not fit {model.config.model_type} {model.task}"
        raise CheckpointError(describe_problems(where, lines))
    model.assign(state)


def _without(tensors: Mapping[str, Tensor], patterns: Collection[str]) -> Mapping[str, Tensor]:
    """Return the tensors whose names match none of the patterns."""
    return {name: tensor for name, tensor in tensors.items() if not any(fnmatchcase(name, one) for one in patterns)}


def _by_current_key(
    tensors: Mapping[str, Tensor], family: Family, ignore: tuple[str, ...]
) -> dict[str, tuple[str, Tensor]]:
    """Return ``(key in the file, tensor)`` by the key of today's releases without the base prefix."""
    given: dict[str, tuple[str, Tensor]] = {}
    tables = [family.keys, *(task.keys for task in family.tasks.values())]
    # A family may itself call a parameter so.
    own = {name_of(key).rpartition(".")[2] for table in tables for key in table.values()} & {"gamma", "beta"}
    for key, tensor in tensors.items():
        if not key.endswith((*_OLD_BUFFERS, *family.ignored_keys, *ignore)):
            # Checkpoints converted from TensorFlow call the parameters of a LayerNorm gamma and beta.
            current = key if own else re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", key))
            given[current.removeprefix(f"{family.prefix}.")] = (key, tensor)
    return given


def _unexpected(given: Mapping[str, tuple[str, Tensor]], used: set[str], family: Family) -> list[str]:
    """Return the keys that are neither of the model, nor of another head or the pooler of its family."""
    elsewhere = {name_of(key) for task in family.tasks.values() for key in task.keys.values()}
    elsewhere |= {name_of(key) for module, key in family.keys.items() if module.startswith("pooler.")}
    elsewhere |= set(filter(None, map(_second_bias_key, elsewhere)))
    # Entries name modules or single parameters, so compare both with the key.
    return [
        key
        for short, (key, _) in given.items()
        if short not in used and not {short, short.rpartition(".")[0]} & elsewhere
    ]


@dataclass
class _Problems:
    """What is wrong with the tensors of a checkpoint.

    Args:
        missing: Keys that the model needs.
        unexpected: Keys that the model does not know.
        misshaped: One description for each tensor with a wrong shape or dtype.
        incomplete_modules: Top-level modules of the missing keys.
    """

    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    misshaped: list[str] = field(default_factory=list)
    incomplete_modules: set[str] = field(default_factory=set)

    def lines(self) -> list[str]:
        """Return one line for each kind of problem, with at most ten examples."""
        lines = []
        kinds = (("missing", self.missing), ("unexpected", self.unexpected), ("with another shape", self.misshaped))
        for kind, found in kinds:
            names = list(dict.fromkeys(found))  # the parts of a fused tensor report it once each
            more = f", and {len(names) - 10} more" if len(names) > 10 else ""
            if names:
                lines.append(f"{len(names)} {kind}: {', '.join(names[:10])}{more}")
        if self.misshaped:
            lines[-1] += "; check the sizes in config.json"
        if self.incomplete_modules and self.incomplete_modules <= {"head", "pooler"}:
            options = " ".join(f"--allow-missing {name}" for name in sorted(self.incomplete_modules))
            lines[0] += f" ({options}, in Python allow_missing={sorted(self.incomplete_modules)}, initializes them)"
        return lines


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
    tensors = read_tensors(path)
    load_weights(
        model,
        tensors,
        source=str(path),
        allow_missing=allow_missing,
        ignore=ignore,
        ignore_keys=ignore_keys,
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
    state |= {copy: tensor.clone() for key, tensor in state.items() if (copy := _second_bias_key(key))}
    state |= extra
    values = dict(sorted(config_to_json(model.config, model.task).items()))
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
