"""Convert models of transformers in memory to models of this package with the same weights, and back.

Both models hold the same Parameter objects: a training step on one changes the other, tied weights stay tied, and
nothing is copied. What is not a Parameter, such as the training mode and the configuration, is taken over once. Hooks
are not taken over.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from qdq.errors import CheckpointError, ConfigError, MissingPackageError, describe_problems
from qdq.models.attention import Attention, AttentionImplementation
from qdq.models.huggingface import config_to_json, parameter_keys
from qdq.models.keymap import FusedPart, name_of, select_part, shape_of_whole
from qdq.models.model import EncoderModel, fresh_parameter
from qdq.models.registry import FAMILIES, configure, construct, family_of, task_of

if TYPE_CHECKING:
    from types import ModuleType

    from torch import Tensor, nn

    from qdq.models.config import ModelConfig
    from qdq.models.model import Model

__all__ = ["from_transformers", "to_transformers"]

# Entries that describe how the configuration was made, and not the model.
_PASSING = ("_name_or_path", "architectures", "dtype", "model_type", "torch_dtype", "transformers_version")


def from_transformers(model: nn.Module, *, attn_implementation: AttentionImplementation = "eager") -> Model:
    """Convert a model of transformers without copying its weights.

    Family and task follow from the class of the model. Training mode, dtype, device and frozen parameters are kept, and
    so is gradient checkpointing if the family offers it.

    Args:
        model: A model of a class of transformers that has a counterpart here. A subclass is refused, since it may
            compute something else.
        attn_implementation: ``eager``, which can be quantized, or ``sdpa``, the fused attention of PyTorch.

    Returns:
        The model of this package.

    Raises:
        ConfigError: The class has no counterpart, or the configuration is not supported.
        CheckpointError: Parameters are missing, unexpected or of another shape, because the model was changed after it
            was built. The message lists all of them.
        MissingPackageError: transformers is not installed.
    """
    model_type, task = _recognise(model)
    given: Any = model
    values = {name: value for name, value in given.config.to_dict().items() if name not in _PASSING}
    config = configure(model_type, **values, architectures=[type(model).__name__])
    ours = construct(config, task, attn_implementation=attn_implementation)
    if isinstance(ours, EncoderModel) and task == "feature-extraction" and getattr(model, "pooler", None) is None:
        ours.pooler = None
    _take_parameters(ours, model)
    if isinstance(ours, EncoderModel) and config.supports_gradient_checkpointing:
        ours.encoder.checkpointing = any(getattr(module, "gradient_checkpointing", False) for module in model.modules())
    return ours.train(model.training)


def to_transformers(model: Model) -> Any:
    """Convert a model to transformers without copying its weights.

    The quantizers of a wrapped model are left out: the result computes what the float model does. Training mode, dtype,
    device, frozen parameters, gradient checkpointing and the implementation of attention are kept.

    Args:
        model: The model.

    Returns:
        A ``transformers.PreTrainedModel`` of the class that ``config.json`` would name.

    Raises:
        ConfigError: The installed release of transformers has no class for this model, or its class cannot compute the
            same. transformers 5, for example, has no relative positions and no pruned heads.
        MissingPackageError: transformers is not installed.
    """
    transformers = _transformers("giving a model to transformers")
    name = task_of(model.config, model.task)[1].name
    cls = getattr(transformers, name, None)
    if cls is None:
        raise ConfigError(
            f"transformers {transformers.__version__} has no {name}, the class for {model.task} of "
            f"'{model.config.model_type}' models: such a model can be saved for a release that has it"
        )
    options = {}
    if model.task in ("feature-extraction", "sts") and getattr(model, "pooler", None) is None:
        options["add_pooling_layer"] = False
    config = cls.config_class(**config_to_json(model.config, model.task))
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    config._attn_implementation = attentions[0].implementation
    # Not on the meta device, because the constructor computes the values of buffers. Weights are not initialized.
    with import_module("transformers.initialization").no_init_weights():
        theirs = cls(config, **options)
    _give_parameters(model, theirs)
    if any(getattr(module, "checkpointing", False) for module in model.modules()):
        # transformers 5 renamed this method in a later release.
        enable = getattr(theirs, "activation_checkpointing_enable", None) or theirs.gradient_checkpointing_enable
        enable()
    return theirs.train(model.training)


def _transformers(purpose: str) -> ModuleType:
    try:
        import transformers
    except ImportError as error:
        raise MissingPackageError("transformers", extra="transformers", purpose=purpose) from error
    return transformers


def _recognise(model: nn.Module) -> tuple[str, str]:
    """Return the family and the task of a model by its class."""
    transformers = _transformers("taking a model from transformers")
    cls = type(model)
    known = {
        entry.name: (family.model_type, task) for family in FAMILIES.values() for task, entry in family.tasks.items()
    }
    if cls.__name__ in known and getattr(transformers, cls.__name__, None) is cls:
        return known[cls.__name__]
    present = [name for name in known if hasattr(transformers, name)]
    parent = next((base.__name__ for base in cls.__mro__ if getattr(transformers, base.__name__, None) is base), None)
    inherits = f" (a subclass of {parent}, which may compute something else)" if parent in present else ""
    raise ConfigError(
        f"{cls.__module__}.{cls.__qualname__}{inherits} has no counterpart here; "
        f"the classes of transformers that have one are {', '.join(present)}"
    )


def _take_parameters(ours: Model, theirs: nn.Module) -> None:
    """Register the Parameters of ``theirs`` in ``ours``, so that weights that are tied there are tied here."""
    family, task = family_of(ours.config.model_type), task_of(ours.config, ours.task)[1]
    given = {
        name.removeprefix(f"{family.prefix}."): parameter
        for name, parameter in theirs.named_parameters(remove_duplicate=False)
    }
    left, problems, missing, chosen = dict(given), [], [], {}
    for name, keys in parameter_keys(ours).items():
        found = [(key, given[name_of(key)]) for key in keys if name_of(key) in given]
        for key in keys:
            left.pop(name_of(key), None)
        wanted = ours.get_parameter(name)
        if not found:
            # The class of transformers does not have it; ours does, and never uses it.
            if name.startswith(task.unused):
                chosen[name] = fresh_parameter(ours, name, next(theirs.parameters()).dtype)
            else:
                missing.append(name_of(keys[-1]))
            continue
        key, whole = found[0]
        if [*whole.shape] != (shape := shape_of_whole(key, wanted.shape)) or not whole.is_floating_point():
            kind = str(whole.dtype).removeprefix("torch.")
            problems.append(f"{name_of(key)} is {list(whole.shape)} {kind}, must be {shape} float")
        else:
            chosen[name] = whole if isinstance(key, str) else _view(select_part(key, whole), whole)
    problems += [f"{key} is missing" for key in dict.fromkeys(missing)] + [f"{key} is unexpected" for key in left]
    if problems:
        raise CheckpointError(
            describe_problems(f"this {type(theirs).__name__} was changed after it was built", problems)
        )
    for name, parameter in chosen.items():
        _put(ours, name, parameter)
    ours.config = _as_tied(ours, ours.config)


def _as_tied(model: Model, config: ModelConfig) -> ModelConfig:
    """Return the configuration with ``tie_word_embeddings`` as it is in the model."""
    decoder = model.output_embedding() if isinstance(model, EncoderModel) else None
    if decoder is None:
        return config
    return replace(config, tie_word_embeddings=decoder.weight is model.get_parameter("embeddings.word.weight"))


def _give_parameters(ours: Model, theirs: nn.Module) -> None:
    """Register the Parameters of ``ours`` in ``theirs`` under all of their names, and move the buffers of ``theirs``.

    Raises:
        ConfigError: Some names differ: this release of transformers cannot compute what ``ours`` computes.
    """
    prefix = family_of(ours.config.model_type).prefix
    names = {name.removeprefix(f"{prefix}."): name for name, _ in theirs.named_parameters(remove_duplicate=False)}
    left, problems = set(names), {}
    fused: dict[str, dict[int, str]] = {}
    for name, keys in parameter_keys(ours).items():
        parameter = ours.get_parameter(name)
        if not any(name_of(key) in names for key in keys):
            problems[name_of(keys[-1])] = "it has none"
        for key in keys:
            whole = name_of(key)
            left.discard(whole)
            if whole not in names:
                continue
            shape, wanted = [*theirs.get_parameter(names[whole]).shape], shape_of_whole(key, parameter.shape)
            if shape != wanted:
                problems[whole] = f"it has {shape} for {wanted}"
            elif isinstance(key, str):
                _put(theirs, names[whole], parameter)
            else:
                fused.setdefault(whole, {})[key.index] = name
    for whole, members in fused.items():
        _put(theirs, names[whole], _joined(ours, [members[index] for index in sorted(members)]))
    problems |= dict.fromkeys(left, "this model has none")
    if problems:
        release = f"{type(theirs).__name__} of the installed transformers cannot compute what this model does"
        raise ConfigError(describe_problems(release, [f"{key}: {problem}" for key, problem in problems.items()]))
    device = next(ours.parameters()).device
    # Buffers are computed by the constructor on the CPU.
    for module in theirs.modules():
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else buffer.to(device)


def _view(part: Tensor, whole: nn.Parameter) -> nn.Parameter:
    """A Parameter over the memory of a part of ``whole``: what changes one in place changes the other."""
    return torch.nn.Parameter(part.detach(), requires_grad=whole.requires_grad)


def _joined(ours: Model, names: list[str]) -> nn.Parameter:
    """One Parameter for several of ours, which become views of it."""
    parameters = [ours.get_parameter(name) for name in names]
    whole = torch.nn.Parameter(torch.cat([p.detach() for p in parameters]), requires_grad=parameters[0].requires_grad)
    for index, name in enumerate(names):
        _put(ours, name, _view(select_part(FusedPart("", index, len(names)), whole), whole))
    return whole


def _put(model: nn.Module, name: str, parameter: nn.Parameter) -> None:
    path, _, leaf = name.rpartition(".")
    model.get_submodule(path).register_parameter(leaf, parameter)
