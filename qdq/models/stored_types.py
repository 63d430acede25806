"""Compare the types that a ``config.json`` names with those of the weights beside it."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import torch

from qdq.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from qdq.models.config import ModelConfig

__all__ = ["check_stored_types", "type_name"]

_LOG = logging.getLogger(__name__)

_PACKED = (torch.int8, torch.uint8, torch.int32, torch.float8_e4m3fn, torch.float8_e5m2)
_SHORT = ("float16", "bfloat16")


def type_name(dtype: torch.dtype) -> str:
    """Return torch's name of a type, such as ``float32``, which is also that in ``config.json``."""
    return str(dtype).removeprefix("torch.")


def check_stored_types(config: ModelConfig, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Check that the configuration describes the weights.

    1. ``quantization_config`` beside packed weights is refused: they cannot be read without their format.
    2. ``quantization_config`` beside float weights is a leftover, with a warning: transformers would follow it.
    3. ``dtype`` or ``torch_dtype`` narrower than the weights has a warning: transformers would round them.
    4. Weights in half precision have a warning: transformers computes in their type.

    Args:
        config: The configuration.
        tensors: The weights by their names in the file.
        source: What messages call the checkpoint.

    Raises:
        CheckpointError: The weights are packed.
    """
    method = _method(config.extra.get("quantization_config"))
    packed = [name for name, tensor in tensors.items() if tensor.dtype in _PACKED]
    if method and packed:
        raise CheckpointError(
            f"{source}: the weights are quantized by {method} (quantization_config in config.json), {len(packed)} "
            f"tensors such as {packed[0]} are {type_name(tensors[packed[0]].dtype)}; qdq starts from float weights: "
            "give the model as it was before, or save it with model.dequantize() and model.save_pretrained()"
        )
    if method:
        _LOG.warning(
            "%s: quantization_config (%s) in config.json is not followed, as the weights are float; transformers may "
            "follow it, so it is left out of what is written",
            source,
            method,
        )
    named = _named_type(config)
    stored = {type_name(tensor.dtype) for tensor in tensors.values() if tensor.is_floating_point()}
    wide = stored - {named}
    # From bfloat16 to float16, numbers above 65504 are lost, and the other way round five of ten fraction bits.
    if named in _SHORT and wide & {"float64", "float32", *_SHORT}:
        _LOG.warning(
            "%s: config.json says that the weights are %s, but they are %s; qdq computes with them as they are, "
            "transformers rounds them unless it is called with dtype=torch.float32",
            source,
            named,
            " and ".join(sorted(wide)),
        )
    elif stored and stored <= set(_SHORT) and named in (None, *_SHORT):
        _LOG.warning(
            "%s: the weights are %s; qdq computes with them in float32, transformers in %s unless it is called with "
            "dtype=torch.float32, so that its outputs are rounded",
            source,
            " and ".join(sorted(stored)),
            named or "their type",
        )


def _method(given: Any) -> str | None:
    """Return the name of a quantization that transformers would follow."""
    if not isinstance(given, dict) or not given:
        return None
    if given.get("load_in_8bit") or given.get("load_in_4bit"):
        return "bitsandbytes"
    return str(given.get("quant_method") or "a method without a name")


def _named_type(config: ModelConfig) -> str | None:
    """Return the type that transformers would load the weights in: ``dtype``, or else ``torch_dtype``."""
    named = config.extra.get("dtype")
    named = config.extra.get("torch_dtype") if named is None else named
    if isinstance(named, dict):  # a type for each part of a model; "" is the rest
        named = named.get("")
    return named if isinstance(named, str) else None
