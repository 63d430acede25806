"""The table of families by ``model_type``, and functions that build a model from its configuration."""

from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from typing import Any

import torch
from torch import nn

from qdq.errors import ConfigError, describe_problems
from qdq.models.albert import ALBERT
from qdq.models.attention import AttentionImplementation
from qdq.models.bert import BERT
from qdq.models.config import ModelConfig
from qdq.models.family import Family, Task
from qdq.models.megatron_bert import MEGATRON_BERT
from qdq.models.model import Model, fresh_parameter
from qdq.models.qdqbert import QDQBERT
from qdq.models.realm import REALM
from qdq.models.roberta import ROBERTA
from qdq.models.roberta_prelayernorm import ROBERTA_PRELAYERNORM
from qdq.models.uninitialized import Uninitialized

FAMILIES: dict[str, Family] = {
    family.model_type: family for family in (BERT, QDQBERT, ALBERT, ROBERTA, ROBERTA_PRELAYERNORM, MEGATRON_BERT, REALM)
}

_NOT_IN_JSON = {"model_type", "extra", "read_as"}


def family_of(model_type: object) -> Family:
    """Return the family of a ``model_type``.

    Raises:
        ConfigError: No family has this name. The message lists those that exist.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        given = "missing" if model_type is None else repr(model_type)
        raise ConfigError(f"model_type is {given}, must be one of {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def configure(model_type: str, **values: Any) -> ModelConfig:
    """Return the configuration of a family.

    Args:
        model_type: The name of the family.
        values: Fields under Hugging Face's names, in Python's types or those of JSON (lists, and strings as the keys of
            labels and pruned heads). The others have the family's defaults. Unknown names are kept in ``extra``.

    Raises:
        ConfigError: The family is unknown, or values are invalid. The message lists all of them.
    """
    cls = family_of(model_type).config
    known = fields_of(cls)
    floats = {one.name for one in fields(cls) if one.type is float}
    given: dict[str, Any] = {}
    read_as: dict[str, str] = {}
    extra: dict[str, Any] = {}
    for name, value in values.items():
        own = cls.names.get(name, name)
        if own not in known:
            extra[name] = value
            continue
        if own in given and given[own] != value:
            raise ConfigError(f"{name} is {value!r}, but {read_as.get(own, own)} is {given[own]!r}: they are one field")
        given[own] = float(value) if own in floats and type(value) is int else value  # transformers refuses 0 for 0.0
        if own != name:
            read_as[own] = name
    return cls(extra=extra, read_as=read_as, **_from_json(given))


def fields_of(config: ModelConfig | type[ModelConfig]) -> set[str]:
    """Return the names of the fields that ``config.json`` holds, as the dataclass calls them."""
    return {one.name for one in fields(config)} - _NOT_IN_JSON


def _from_json(values: dict[str, Any]) -> dict[str, Any]:
    """Convert JSON's types to ours: integer keys, tuples, and from ``id2label`` ``num_labels`` and ``label2id``."""
    result, problems = dict(values), []
    names, pruned, labels = (result.pop(name, None) or () for name in ("architectures", "pruned_heads", "id2label"))
    if isinstance(names, list | tuple) and all(isinstance(name, str) for name in names):
        result["architectures"] = tuple(names)
    else:
        problems.append(f"architectures is {names!r}, must be a list of class names")
    try:
        result["pruned_heads"] = {int(layer): tuple(sorted({*map(int, cut)})) for layer, cut in dict(pruned).items()}
    except (TypeError, ValueError):
        problems.append(f"pruned_heads is {pruned!r}, must map layers to lists of heads")
    try:
        known = {int(index): str(label) for index, label in dict(labels).items()}
        known = known or _names_by_id(result.get("label2id"), result.get("num_labels", 2))
        # id2label decides, as in transformers: label2id may be of another data set, or hold anything. One that agrees
        # stays as it is, because digests of statistics contain its order.
        own = {label: index for index, label in known.items()} or None
        if result.get("label2id") not in (None, own):
            result["label2id"] = own
        result |= {"id2label": known, "num_labels": len(known)} if known else {}
    except (TypeError, ValueError):
        problems.append(f"id2label is {labels!r}, must map numbers to names")
    if problems:
        raise ConfigError(describe_problems("configuration", problems))
    return result


def _names_by_id(label2id: Any, num_labels: Any) -> dict[int, str]:
    """Return the names of labels from the only table of a file, if it names every id once; otherwise nothing."""
    if not isinstance(label2id, Mapping) or [*map(type, label2id.values())] != [int] * len(label2id):
        return {}
    names = {index: str(label) for label, index in label2id.items()}
    complete = len(label2id) == num_labels and set(names) == set(range(len(label2id)))
    return names if complete else {}


def task_of(config: ModelConfig, task: str | None = None) -> tuple[str, Task]:
    """Return the name and the description of a task.

    Args:
        config: The configuration.
        task: The name of the task. None takes the one that ``config.architectures`` names, or feature extraction.

    Raises:
        ConfigError: The family does not have the task, or ``architectures`` names none of its classes.
    """
    family = family_of(config.model_type)
    if task is None:
        if not config.architectures:
            return "feature-extraction", family.tasks["feature-extraction"]
        by_class = {entry.name: name for name, entry in family.tasks.items()}
        # Of several classes, transformers' pipelines take the first.
        for cls in config.architectures:
            if cls in by_class:
                return by_class[cls], family.tasks[by_class[cls]]
        known = ", ".join(f"{entry.name} ({name})" for name, entry in family.tasks.items())
        given = ", ".join(config.architectures)
        raise ConfigError(
            f"architectures are {given}, which are none of '{config.model_type}' ({known}): choose a task",
        )
    # Semantic similarity (sts) compares the embeddings of the bare encoder.
    entry_name = "feature-extraction" if task == "sts" else task
    if entry_name not in family.tasks:
        near = get_close_matches(entry_name, family.tasks, n=1)
        tip = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(f"no task '{task}': '{config.model_type}' has {', '.join(family.tasks)}{tip}")
    return task, family.tasks[entry_name]


def construct(
    config: ModelConfig, task: str | None = None, *, attn_implementation: AttentionImplementation = "eager"
) -> Model:
    """Return a model on the meta device, whose weights have no values yet.

    Args:
        config: The configuration, from ``configure`` or ``read_config``.
        task: One of the family's tasks. None takes the one that ``config.architectures`` names.
        attn_implementation: ``"eager"`` or ``"sdpa"``, see ``build``.

    Raises:
        ConfigError: The family, the task or the implementation is unknown.
    """
    kind = config.model_type
    family = family_of(kind)
    if type(config) is not family.config:
        raise ConfigError(f"the configuration is not of '{kind}': make it with configure('{kind}')")
    name, _ = task_of(config, task)
    # Weights on the meta device take no memory and no time, and are all replaced afterwards.
    with torch.device("meta"), Uninitialized():
        model = family.model(config, name)
    model.set_attn_implementation(attn_implementation)
    return model


def build(
    config: ModelConfig, task: str | None = None, *, attn_implementation: AttentionImplementation = "eager"
) -> Model:
    """Return a freshly initialized model, in training mode like every new ``nn.Module``.

    Args:
        config: The configuration, from ``configure`` or ``read_config``.
        task: One of the family's tasks. None takes the one that ``config.architectures`` names.
        attn_implementation: ``"eager"`` (attention in replaceable modules) or ``"sdpa"`` (torch's fused function).

    Raises:
        ConfigError: The family, the task or the implementation is unknown.
    """
    model = construct(config, task, attn_implementation=attn_implementation)
    state: dict[str, nn.Parameter] = {}
    for names in model.shared_names():  # a shared weight is initialized once
        state |= dict.fromkeys(names, fresh_parameter(model, names[0]))
    model.assign(state)
    return model
