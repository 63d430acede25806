"""Convert a checkpoint of a BERT or QDQBERT that pytorch-quantization calibrated."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError
from qdq.interop.conversion import Conversion, Converted, Mapped, Skipped, build_model
from qdq.interop.pytorch_quantization.checkpoint import is_quantizer_key, load_amax
from qdq.interop.pytorch_quantization.slot_names import qdqbert_names
from qdq.models.huggingface import config_to_json, read_config, read_weights
from qdq.models.registry import FAMILIES, configure, task_of

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["convert"]

_BUFFERS = (".position_ids", "embeddings.token_type_ids")
_IDENTITY = ("model_type", "architectures")  # the fields that name family and class


def convert(source: str | Path, *, task: str | None = None, overrides: Mapping[str, Any] | None = None) -> Converted:
    """Convert a checkpoint to a quantized model of the family ``qdqbert``; ranges that are missing are dynamic.

    Args:
        source: The directory with the ``config.json`` of BERT or QDQBERT, and weights with ``..._quantizer._amax``.
        task: The task of the model; by default the one of ``architectures``.
        overrides: Fields of the configuration that override those of the file.

    Returns:
        The model and the report.

    Raises:
        CheckpointError: Files are damaged, or tensors are unknown, missing or of another shape.
        ConfigError: The configuration is not supported, or is of another family.
    """
    path = Path(source)
    given = read_config(path)
    if given.model_type not in ("bert", "qdqbert"):
        raise ConfigError(
            f"{path}: model_type is '{given.model_type}'; models of pytorch-quantization are bert or qdqbert"
        )
    task = task or task_of(given)[0]
    if task not in FAMILIES["qdqbert"].tasks:
        raise ConfigError(
            f"{path}: QDQBERT has no model for the task '{task}': name one ({', '.join(FAMILIES['qdqbert'].tasks)})"
        )
    values = {name: value for name, value in config_to_json(given, None).items() if name not in _IDENTITY}
    config = configure("qdqbert", **{**values, "pad_token_id": given.pad_token_id, **(overrides or {})})

    report = Conversion(str(path), "pytorch-quantization")
    tensors = read_weights(path, given, with_ranges=True)
    weights = {}
    for name, tensor in tensors.items():
        shape = tuple(tensor.shape)
        if name.endswith(_BUFFERS):
            report.skipped.append(Skipped(name, "a buffer of old releases, not a weight", shape))
        elif not is_quantizer_key(name):
            weights[name] = tensor
            report.mapped.append(Mapped(name, shape, (name,)))
    model = build_model(config, task, weights, report)
    load_amax(model, {name: tensor for name, tensor in tensors.items() if is_quantizer_key(name)}, source=str(path))
    slots = {f"{name}._amax": str(slot) for slot, name in qdqbert_names(model).items()}
    for name, tensor in tensors.items():
        if is_quantizer_key(name):
            slot = slots[name.removeprefix("bert.")]
            report.mapped.append(Mapped(name, tuple(tensor.shape), (slot,), "range of a slot"))
    dynamic = len(slots) - sum(is_quantizer_key(name) for name in tensors)
    if dynamic:
        report.notes.append(f"{dynamic} of {len(slots)} quantizers have no range in the file and are dynamic")
    return Converted(model, report)
