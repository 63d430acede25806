"""Helpers for decoding step by step with ``past_key_values``."""

import torch
from torch import Tensor, nn

from qdq.models.inputs import InputError
from qdq.models.outputs import Cache


def reorder_cache(cache: Cache, beams: Tensor) -> Cache:
    """``cache`` with its batch axis put into the order of ``beams`` ``(batch,)``, after a step of beam search."""
    return tuple(tuple(tensor.index_select(0, beams.to(tensor.device)) for tensor in layer) for layer in cache)


def new_tokens(input_ids: Tensor, cache: Cache | None, attention_mask: Tensor | None = None) -> dict[str, object]:
    """Arguments of the next call: the ids ``(batch, seq)`` that are not cached yet, the mask over all, the cache.

    Ids no longer than the cache are taken to end with one new token.
    """
    attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if cache is not None:
        past = cache[0][0].shape[2]
        input_ids = input_ids[:, past if input_ids.shape[1] > past else -1 :]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "past_key_values": cache}


def masked_slot(input_ids: Tensor, attention_mask: Tensor | None, pad_token_id: int | None) -> dict[str, Tensor]:
    """Arguments with which the masked models of BERT, QDQBERT and Megatron-BERT predict one token more.

    A padding token, hidden from all others, follows the ids ``(batch, seq)``; its logits are the prediction.
    """
    if pad_token_id is None:
        raise InputError("pad_token_id is null in the configuration: generation needs a padding token")
    attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    pad = nn.functional.pad
    return {"input_ids": pad(input_ids, (0, 1), value=pad_token_id), "attention_mask": pad(attention_mask, (0, 1))}
