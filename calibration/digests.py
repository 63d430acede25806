"""Short digests of what statistics belong to. Runs may share statistics only if all of these are equal."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING, Any

import torch

from qdq.quantization.quantizer import quantizers
from qdq.quantization.wrap import named_slots

if TYPE_CHECKING:
    from collections.abc import Iterable

    from torch import Tensor, nn

__all__ = ["model_digest", "slots_digest", "text_digest"]


def model_digest(model: nn.Module) -> str:
    """Return a digest of the float model's weights and configuration, without its quantizers."""
    # Quantizers are left out, so that runs with different ranges or scales recognise the same model.
    inside = tuple(f"{name}." for name, _ in quantizers(model))
    digest = _new_digest()
    config = getattr(model, "config", None)
    if is_dataclass(config) and not isinstance(config, type):
        digest.update(repr(sorted(_as_in_version_1(asdict(config)).items())).encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not name.startswith(inside):
            _add_tensor(digest, name, tensor)
    return digest.hexdigest()


def _as_in_version_1(config: dict[str, Any]) -> dict[str, Any]:
    """Return the fields of a configuration as the first version of this digest had them.

    In that version one class held the fields of all families, and switches said what a family fixes. Files contain the
    digest, so it must stay the same for the families of that version. Newer families need no such care.
    """
    config.pop("read_as", None)  # a spelling, which changes nothing
    if (switches := _SWITCHES.get(config.get("model_type", ""))) is None:
        return config
    return {**_FIELDS_OF_ALL, **config, "switches": {**_USUAL_SWITCHES, **switches}}


_FIELDS_OF_ALL: dict[str, Any] = {
    "classifier_dropout": None,
    "embedding_size": 128,
    "num_hidden_groups": 1,
    "inner_group_num": 1,
    "classifier_dropout_prob": None,
    "retriever_proj_size": 128,
    "num_candidates": 8,
    "span_hidden_size": 256,
    "max_span_width": 10,
    "reader_layer_norm_eps": 1e-3,
    "reader_beam_size": 5,
    "reader_seq_len": 320,
    "num_block_records": 13353718,
    "searcher_beam_size": 5000,
}
# The order matters, because the digest is computed from their text.
_USUAL_SWITCHES = {
    "norm_first": False,
    "embedding_norm": True,
    "final_norm": False,
    "final_norm_in_hidden_states": True,
    "embedding_projection": False,
    "shared_layers": False,
    "feed_forward_dropout": True,
    "positions_from_padding": False,
    "zero_padding_row": True,
    "relative_scores_scaled": True,
    "relative_with_cache": True,
    "relative_cross_attention": False,
    "chunking": True,
    "decoder": True,
    "gradient_checkpointing": True,
}
_SWITCHES: dict[str, dict[str, bool]] = {
    "bert": {},
    "qdqbert": {"chunking": False, "relative_with_cache": False, "relative_cross_attention": True},
    "albert": {
        "embedding_projection": True,
        "shared_layers": True,
        "feed_forward_dropout": False,
        "relative_scores_scaled": False,
        "decoder": False,
        "gradient_checkpointing": False,
    },
    "roberta-prelayernorm": {
        "norm_first": True,
        "final_norm": True,
        "final_norm_in_hidden_states": False,
        "positions_from_padding": True,
    },
    "megatron-bert": {
        "norm_first": True,
        "embedding_norm": False,
        "final_norm": True,
        "zero_padding_row": False,
        "relative_cross_attention": True,
    },
    "realm": {"gradient_checkpointing": False},
}


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
    # Type and shape are part of the digest, because different tensors can have the same bytes.
    digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
    digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
