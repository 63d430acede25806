"""The families by ``model_type``, and building a model from its configuration."""

from dataclasses import fields
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
    """The family called ``model_type``.

    Raises:
        ConfigError: there is none; the message lists those there are.
    """
    if not isinstance(model_type, str) or model_type not in FAMILIES:
        given = "missing" if model_type is None else repr(model_type)
        raise ConfigError(f"model_type is {given}, must be one of {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def configure(model_type: str, **values: Any) -> ModelConfig:
    """The configuration of a family: its defaults, changed by ``values`` under Hugging Face's names.

    Values may be as JSON has them (string keys for labels and pruned heads, lists). Names that mean nothing for the
    family are kept in ``extra``.

    Raises:
        ConfigError: an unknown family, or values that cannot be followed; all of them are listed.
    """
    cls = family_of(model_type).config
    known, given, read_as, extra = fields_of(cls), {}, {}, {}
    for name, value in values.items():
        own = cls.names.get(name, name)
        if own not in known:
            extra[name] = value
            continue
        given[own] = value
        if own != name:
            read_as[own] = name
    return cls(extra=extra, read_as=read_as, **_from_json(given))


def fields_of(config: ModelConfig | type[ModelConfig]) -> set[str]:
    """Return the fields of ``config`` that ``config.json`` has."""
    return {one.name for one in fields(config)} - _NOT_IN_JSON


def _from_json(values: dict[str, Any]) -> dict[str, Any]:
    """JSON's shapes to ours: integer keys, tuples, ``num_labels`` from ``id2label``."""
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
        result |= {"id2label": known, "num_labels": len(known)} if known else {}
    except (TypeError, ValueError):
        problems.append(f"id2label is {labels!r}, must map numbers to names")
    if problems:
        raise ConfigError(describe_problems("configuration", problems))
    return result


def task_of(config: ModelConfig, task: str | None = None) -> tuple[str, Task]:
    """The task called ``task``, or the one that ``config.architectures`` names, or feature extraction.

    Raises:
        ConfigError: the family has no such task, or an architecture names none of its classes.
    """
    family = family_of(config.model_type)
    if task is None:
        if not config.architectures:
            return "feature-extraction", family.tasks["feature-extraction"]
        for name, entry in family.tasks.items():
            if entry.name in config.architectures:
                return name, entry
        known = ", ".join(f"{entry.name} ({name})" for name, entry in family.tasks.items())
        given = ", ".join(config.architectures)
        raise ConfigError(f"architectures are {given}, '{config.model_type}' has {known}: choose a task")
    # Semantic similarity is measured with the bare encoder.
    entry_name = "feature-extraction" if task == "sts" else task
    if entry_name not in family.tasks:
        raise ConfigError(f"task is '{task}', '{config.model_type}' has {', '.join(family.tasks)}")
    return task, family.tasks[entry_name]


def construct(
    config: ModelConfig, task: str | None = None, *, attn_implementation: AttentionImplementation = "eager"
) -> Model:
    """The model of ``config`` on the meta device: its weights are to be loaded or initialised."""
    kind = config.model_type
    family = family_of(kind)
    if type(config) is not family.config:
        raise ConfigError(f"the configuration is not of '{kind}': make it with configure('{kind}')")
    name, _ = task_of(config, task)
    with torch.device("meta"), Uninitialized():
        model = family.model(config, name)
    model.set_attn_implementation(attn_implementation)
    return model


def build(
    config: ModelConfig, task: str | None = None, *, attn_implementation: AttentionImplementation = "eager"
) -> Model:
    """A freshly initialised model in training mode, as ``nn.Module`` constructors give it.

    Args:
        config: what to build, from ``configure`` or ``read_config``.
        task: one of the family's tasks; None takes the one that ``config.architectures`` names.
        attn_implementation: ``"eager"`` (attention in replaceable modules) or ``"sdpa"`` (torch's fused function).

    Raises:
        ConfigError: unknown family, task or implementation.
    """
    model = construct(config, task, attn_implementation=attn_implementation)
    state: dict[str, nn.Parameter] = {}
    for names in model.shared_names():
        state |= dict.fromkeys(names, fresh_parameter(model, names[0]))
    model.assign(state)
    return model
