"""Short digests of what statistics belong to. Runs may share statistics only if all of these are equal."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING

import torch

from qdq.quantization.quantizer import quantizers
from qdq.quantization.wrap import named_slots

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

__all__ = ["model_digest", "slots_digest", "text_digest"]


def model_digest(model: nn.Module) -> str:
    """Return a digest of the float model's weights and configuration, without its quantizers."""
    inside = tuple(f"{name}." for name, _ in quantizers(model))
    digest = _new_digest()
    config = getattr(model, "config", None)
    if is_dataclass(config) and not isinstance(config, type):
        digest.update(repr(sorted(asdict(config).items())).encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not name.startswith(inside):
            _add_tensor(digest, name, tensor)
    return digest.hexdigest()


def slots_digest(model: nn.Module) -> str:
    """Return a digest of every slot's spec and transform."""
    digest = _new_digest()
    for slot, quantizer in named_slots(model):
        digest.update(f"{slot} {quantizer.spec and sorted(quantizer.spec.to_dict().items())}\n".encode())
        if quantizer.transform is not None:
            for name, tensor in quantizer.transform.named_buffers():
                _add_tensor(digest, name, tensor)
    return digest.hexdigest()


def text_digest(texts: Iterable[object]) -> str:
    """Return a digest of the ``repr`` of each object, in their order."""
    digest = _new_digest()
    for text in texts:
        digest.update(f"{text!r}\n".encode())
    return digest.hexdigest()


def _new_digest() -> hashlib.blake2b:
    return hashlib.blake2b(digest_size=8)


def _add_tensor(digest: hashlib.blake2b, name: str, tensor: Tensor) -> None:
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
