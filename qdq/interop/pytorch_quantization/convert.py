"""Convert a checkpoint of a BERT or QDQBERT that pytorch-quantization calibrated.

Two layouts are read: that of transformers, and that of NVIDIA's own BERT (DeepLearningExamples), whose linear layers
with an activation are called ``dense_act``, whose weights lie under ``model`` beside the state of the training, and
whose configuration is ``bert_config.json``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from qdq.errors import CheckpointError, ConfigError
from qdq.interop.conversion import Conversion, Converted, Mapped, Skipped, build_model
from qdq.interop.pytorch_quantization.checkpoint import is_of_linear, is_quantizer_key, load_amax
from qdq.interop.pytorch_quantization.slot_names import qdqbert_names
from qdq.interop.torch_file import load
from qdq.models.huggingface import config_to_json, read_tensors
from qdq.models.registry import FAMILIES, configure, task_of
from qdq.storage import missing_directory, read_json, refuse_pointer

if TYPE_CHECKING:
    from qdq.models.config import ModelConfig
    from qdq.models.model import Model

__all__ = ["convert"]

_BUFFERS = (".position_ids", "embeddings.token_type_ids")
_IDENTITY = ("model_type", "architectures")  # the fields that name family and class
_CONFIGS = ("config.json", "bert_config.json")
_PICKLE = "pytorch_model.bin"
_OTHERS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin.index.json")
_NESTED = ("model", "state_dict", "model_state_dict", "module")


def convert(source: str | Path, *, task: str | None = None, overrides: Mapping[str, Any] | None = None) -> Converted:
    """Convert a checkpoint to a quantized model of the family ``qdqbert``; ranges that are missing are dynamic.

    Args:
        source: The directory with the ``config.json`` (or NVIDIA's ``bert_config.json``) of BERT or QDQBERT and weights
            with ``..._quantizer._amax``, or a file of ``torch.save`` in it.
        task: The task of the model; by default the one of ``architectures``, or else the one whose head is there.
        overrides: Fields of the configuration that override those of the file.

    Returns:
        The model and the report.

    Raises:
        CheckpointError: Files are damaged, or tensors are unknown, missing or of another shape.
        ConfigError: The configuration is not supported, or is of another family.
    """
    path = Path(source)
    report = Conversion(str(path), "pytorch-quantization")
    given = _config(path if path.is_dir() else path.parent, path)
    if given.model_type not in ("bert", "qdqbert"):
        raise ConfigError(
            f"{path}: model_type is '{given.model_type}'; models of pytorch-quantization are bert or qdqbert"
        )
    tensors, names = _renamed(_state(path, report))
    task = task or (task_of(given)[0] if given.architectures else _task(tensors))
    if task not in FAMILIES["qdqbert"].tasks:
        raise ConfigError(
            f"{path}: QDQBERT has no model for the task '{task}': name one ({', '.join(FAMILIES['qdqbert'].tasks)})"
        )
    values = {name: value for name, value in config_to_json(given, None).items() if name not in _IDENTITY}
    values |= _measured(given, tensors, task, report)
    ranges = {name: tensor for name, tensor in tensors.items() if is_quantizer_key(name)}
    is_float = not ranges and any(".dense_act." in name for name in names.values())
    family = "bert" if is_float else "qdqbert"
    config = configure(family, **{**values, "pad_token_id": given.pad_token_id, **(overrides or {})})

    weights = {}
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if name.endswith(_BUFFERS):
            report.skipped.append(Skipped(names[name], "a buffer of old releases, not a weight", shape))
        elif name not in ranges:
            weights[name] = tensor
            report.mapped.append(Mapped(names[name], shape, (name,)))
    model = build_model(config, task, weights, report)
    if is_float:
        report.notes.append("there are no ranges in the file: the result is a float model, for qdq calibrate")
    else:
        _load_ranges(model, ranges, names, report)
    return Converted(model, report)


def _load_ranges(model: Model, ranges: Mapping[str, Tensor], names: Mapping[str, str], report: Conversion) -> None:
    # NVIDIA's own BERT has modules for its linear layers only: what it multiplies and adds otherwise is float.
    linears_only = any(".dense_act." in name for name in names.values()) and all(
        is_of_linear(name.removesuffix("._amax")) for name in ranges
    )
    load_amax(model, ranges, linears_only=linears_only, source=report.source)
    slots = {f"{name}._amax": str(slot) for slot, name in qdqbert_names(model).items()}
    for name, tensor in ranges.items():
        slot = slots[name.removeprefix("bert.")]
        report.mapped.append(Mapped(names[name], tuple(tensor.shape), (slot,), "range of a slot"))
    if linears_only:
        slots = {name: slot for name, slot in slots.items() if is_of_linear(name.removesuffix("._amax"))}
        report.notes.append("the products of attention and the additions have no ranges and stay float, as in NVIDIA's")
    if dynamic := len(slots) - len(ranges):
        report.notes.append(f"{dynamic} of {len(slots)} quantizers have no range in the file and are dynamic")


# --- reading ---


def _config(folder: Path, source: Path) -> ModelConfig:
    """Read the configuration, which is BERT's if it does not say another family."""
    if not source.exists():
        raise CheckpointError(missing_directory(source, "give the directory of a calibrated checkpoint"))
    found = next((folder / name for name in _CONFIGS if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{folder}: none of {', '.join(_CONFIGS)} is there; copy the model's configuration here")
    refuse_pointer(found)
    values = read_json(found, error=ConfigError)
    try:
        return configure(values.pop("model_type", None) or "bert", **values)
    except ConfigError as error:
        raise ConfigError(f"{found}: {error}") from error


def _state(path: Path, report: Conversion) -> Mapping[str, Tensor]:
    """Return the tensors of a directory or a file; what lies beside nested ones is training state."""
    if path.is_dir():
        others = any((path / name).is_file() for name in _OTHERS)
        pickles = [path / _PICKLE] if (path / _PICKLE).is_file() else sorted(path.glob("*.pt"))
        if others or len(pickles) != 1:
            return read_tensors(path)
        path = pickles[0]
    if path.suffix == ".safetensors":
        return read_tensors(path.parent)
    document = load(path, name=str(path))
    while isinstance(document, Mapping):
        inner = next((key for key in _NESTED if isinstance(document.get(key), Mapping)), None)
        if inner is None:
            break
        report.skipped += [Skipped(str(key), "training state, not a weight") for key in document if key != inner]
        document = document[inner]
    if not isinstance(document, Mapping) or not document:
        raise CheckpointError(f"{path}: no tensors; it holds a {type(document).__name__}")
    if wrong := [str(key) for key, value in document.items() if not isinstance(value, Tensor)]:
        shown = ", ".join(wrong[:5])
        raise CheckpointError(f"{path}: not a state dict of tensors: {shown} are others; save model.state_dict() alone")
    return {str(key): value for key, value in document.items()}


def _renamed(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return the tensors under the names of transformers, and the names that they had."""
    names = {}
    for name in tensors:
        key = name
        while key.startswith("module."):  # a wrapper for distributed training
            key = key.removeprefix("module.")
        key = key.replace(".dense_act.", ".dense.")
        names[re.sub(r"\.beta$", ".bias", re.sub(r"\.gamma$", ".weight", key))] = name
    if len(names) < len(tensors):
        twice = sorted(set(tensors) - set(names.values()))
        raise CheckpointError(f"{', '.join(twice[:5])}: another tensor has the same name without a wrapper's prefix")
    return {key: tensors[name] for key, name in names.items()}, names


def _task(tensors: Mapping[str, Tensor]) -> str:
    """Return the task whose head is there."""

    def has(name: str) -> bool:
        return any(key.startswith(f"{name}.") for key in tensors)

    if has("qa_outputs"):
        return "question-answering"
    if has("cls.predictions"):
        return (
            "pre-training"
            if has("cls.seq_relationship") and "pre-training" in FAMILIES["qdqbert"].tasks
            else "masked-lm"
        )
    if has("classifier"):
        return "multiple-choice" if len(tensors["classifier.weight"]) == 1 else "sequence-classification"
    return "next-sentence" if has("cls.seq_relationship") else "feature-extraction"


def _measured(given: ModelConfig, tensors: Mapping[str, Tensor], task: str, report: Conversion) -> dict[str, Any]:
    """Return the sizes that NVIDIA's configuration does not say: of a padded vocabulary, and of a classifier."""
    found: dict[str, Any] = {}
    words = next((t for name, t in tensors.items() if name.endswith("embeddings.word_embeddings.weight")), None)
    # Its scripts pad the vocabulary to a multiple of 8 and leave the number in the file as it was.
    if words is not None and given.vocab_size < len(words) < given.vocab_size + 8 and len(words) % 8 == 0:
        found["vocab_size"] = len(words)
        report.notes.append(f"the vocabulary is padded: vocab_size is {len(words)}, not {given.vocab_size}")
    if task in ("sequence-classification", "token-classification") and not given.architectures:
        labels = tensors.get("classifier.weight")
        if labels is not None and len(labels) != given.num_labels:
            found["num_labels"] = len(labels)
    return found
