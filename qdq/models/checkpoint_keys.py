"""The keys of a model's weights in a checkpoint of Hugging Face, for loading and for saving."""

from collections.abc import Mapping
from itertools import chain

import torch
from torch import Tensor

from qdq.errors import CheckpointError, describe_problems
from qdq.models.keymap import Key, name_of, parts_of, translate
from qdq.models.model import Model
from qdq.models.registry import family_of, task_of

__all__ = ["parameter_keys", "second_bias_key", "upstream_state"]


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
        second = second_bias_key(name_of(key))
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


def second_bias_key(key: str) -> str | None:
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
