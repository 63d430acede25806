"""Read the weights of a checkpoint into a model. Loading is strict; see :mod:`qdq.models.huggingface`."""

import logging
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from qdq.errors import CheckpointError, QDQError, describe_problems
from qdq.models.checkpoint_keys import parameter_keys, second_bias_key
from qdq.models.config import ModelConfig
from qdq.models.family import Family
from qdq.models.folder_diagnosis import check_no_adapter
from qdq.models.keymap import Key, name_of, select_part, shape_of_whole
from qdq.models.model import EncoderModel, Model, fresh_parameter
from qdq.models.registry import construct, family_of, task_of
from qdq.models.stored_names import read_names
from qdq.models.tensor_problems import TensorProblems, listed
from qdq.models.weight_files import read_tensors, tensor_names

__all__ = ["holds_pooler", "leave_out_pooler", "load_weights", "read_weights", "stores_pooler", "untie"]

_LOG = logging.getLogger(__name__)
_OLD_BUFFERS = ("embeddings.position_ids", "embeddings.token_type_ids")


def read_weights(
    path: str | os.PathLike[str],
    config: ModelConfig,
    *,
    part: str = "",
    ignore_keys: Collection[str] = (),
    with_ranges: bool = False,
    warn: bool = True,
) -> dict[str, Tensor]:
    """Read the tensors of a model directory under the names of its family; warnings tell what was changed for that.

    Args:
        path: The directory.
        config: The configuration, which names the family.
        part: Beginning of the names of one of several models in a file; the names are read without it.
        ignore_keys: Patterns of keys to leave out, such as ``fit_dense.*``.
        with_ranges: Whether to keep the ranges of pytorch-quantization whatever the family is.
        warn: Whether to tell; not for weights that are read a second time.

    Raises:
        CheckpointError: Files are missing or damaged, or hold an adapter that is not merged, or several models.
        StorageError: A file cannot be read.
    """
    path = Path(path)
    check_no_adapter(path)
    tensors = {name.removeprefix(part): one for name, one in read_tensors(path).items() if name.startswith(part)}
    family = family_of(config.model_type)
    try:
        found = read_names(tensors, family, ignore_keys=ignore_keys, with_ranges=with_ranges)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    for note in found.notes if warn else ():
        _LOG.warning("%s: %s", path, note)
    return {own: tensors[name] for name, own in found.names.items()}


def stores_pooler(path: str | os.PathLike[str], config: ModelConfig, *, ignore_keys: Collection[str] = ()) -> bool:
    """Return whether the weights of a model directory hold a pooler; True for weights that cannot be read.

    Args:
        path: The directory.
        config: The configuration, which names the family.
        ignore_keys: Patterns of keys to leave out.
    """
    try:
        model, family = construct(config, "feature-extraction"), family_of(config.model_type)
        names = [*read_names(tensor_names(path), family, ignore_keys=ignore_keys).names.values()]
    except QDQError:  # whoever loads the model gets the message
        return True
    return holds_pooler(model, names)


def holds_pooler(model: Model, names: Collection[str]) -> bool:
    """Return whether tensors of a pooler are among the names of a checkpoint.

    Args:
        model: A model of the family.
        names: Names of the tensors, with or without the base prefix.
    """
    prefix = f"{family_of(model.config.model_type).prefix}."
    return _has_pooler({name.removeprefix(prefix) for name in names}, parameter_keys(model))


def leave_out_pooler(model: Model) -> None:
    """Remove the pooler of a feature extractor, which is complete without it; other models need theirs."""
    if type(model) is EncoderModel and model.head is None:
        model.pooler = None


def untie(model: Model, tensors: Mapping[str, Tensor], source: str) -> None:
    """Separate the linear layer to the vocabulary from the word embedding if the checkpoint has other values for both.

    transformers 5 does so too, whatever ``tie_word_embeddings`` says.
    """
    decoder = model.output_embedding() if isinstance(model, EncoderModel) else None
    if decoder is None or not model.config.tie_word_embeddings:
        return
    prefix, keys = f"{family_of(model.config.model_type).prefix}.", parameter_keys(model)
    given = {key.removeprefix(prefix): tensor for key, tensor in tensors.items()}
    (names,) = (names for names in model.shared_names() if "embeddings.word.weight" in names)
    stored = [given[key] for name in names if (key := name_of(keys[name][0])) in given]
    if len(stored) < 2 or all(_are_equal(stored[0], other) for other in stored[1:]):
        return
    _LOG.warning(
        "%s: the decoder of the head has other values than the word embedding, so they are not tied, although "
        "tie_word_embeddings in config.json is not false",
        source,
    )
    model.config = replace(model.config, tie_word_embeddings=False)
    decoder.weight = nn.Parameter(torch.empty_like(decoder.weight))


def load_weights(
    model: Model,
    tensors: Mapping[str, Tensor],
    *,
    source: str = "checkpoint",
    allow_missing: Collection[str] = (),
    ignore: tuple[str, ...] = (),
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
        dtype: The dtype of the parameters.
        seed: Seed of the weights that are drawn; None takes torch's random numbers as they come.

    Raises:
        CheckpointError: Tensors are missing, unexpected or misshaped. The message lists them.
    """
    family = family_of(model.config.model_type)
    problems = TensorProblems()
    given = _by_current_key(tensors, family, ignore, problems)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    keys = parameter_keys(model)
    state: dict[str, nn.Parameter] = {}
    used: set[str] = set()
    drawn: list[str] = []
    # A pooler of which one tensor is there was damaged, not left out.
    half = {"pooler"} if _has_pooler(given, keys) else set()
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
        elif (top in allow_missing and top not in half) or names[0].startswith(unused):
            drawn += [] if names[0].startswith(unused) else [names[0]]
            parameter = fresh_parameter(model, names[0], dtype, generator)
        else:
            problems.missing.append(name_of(keys[names[0]][-1]))
            # There is no option to draw the other half of a pooler.
            problems.incomplete_modules.add(f"half of {top}" if top in half else top)
            continue
        # All names get the same object, so that tied weights stay tied.
        state.update(dict.fromkeys(names, parameter))
    problems.unexpected = _unexpected(given, used, family)
    if lines := problems.lines(model.config):
        where = f"{source}: the tensors do not fit {model.config.model_type} {model.task}"
        raise CheckpointError(describe_problems(where, lines))
    if drawn:
        _LOG.warning("%s: %s drawn at random, since the checkpoint lacks them", source, listed(drawn))
    model.assign(state)


def _has_pooler(given: Collection[str], keys: Mapping[str, tuple[Key, ...]]) -> bool:
    return any(name_of(key) in given for name, own in keys.items() if name.startswith("pooler.") for key in own)


def _by_current_key(
    tensors: Mapping[str, Tensor], family: Family, ignore: tuple[str, ...], problems: TensorProblems
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
            short = current.removeprefix(f"{family.prefix}.")
            if short in given and not _are_equal(given[short][1], tensor):
                problems.twice.append(f"{given[short][0]} and {key} are one weight, with different values")
            given[short] = (key, tensor)
    return given


def _are_equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and bool((one == other).all())


def _unexpected(given: Mapping[str, tuple[str, Tensor]], used: set[str], family: Family) -> list[str]:
    """Return the keys that are neither of the model, nor of another head or the pooler of its family."""
    elsewhere = {name_of(key) for task in family.tasks.values() for key in task.keys.values()}
    elsewhere |= {name_of(key) for module, key in family.keys.items() if module.startswith("pooler.")}
    elsewhere |= set(filter(None, map(second_bias_key, elsewhere)))
    # Entries name modules or single parameters, so compare both with the key.
    return [
        key
        for short, (key, _) in given.items()
        if short not in used and not {short, short.rpartition(".")[0]} & elsewhere
    ]
