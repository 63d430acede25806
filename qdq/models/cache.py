"""Helpers for decoding step by step with ``past_key_values``."""

import torch
from torch import Tensor

from qdq.models.outputs import Cache


def reorder_cache(cache: Cache, beams: Tensor) -> Cache:
    """``cache`` with its batch axis put into the order of ``beams`` ``(batch,)``, after a step of beam search."""
    return tuple(tuple(tensor.index_select(0, beams.to(tensor.device)) for tensor in layer) for layer in cache)


def new_tokens(input_ids: Tensor, cache: Cache | None, attention_mask: Tensor | None = None) -> dict[str, object]:
    """Arguments of the next call: the ids ``(batch, seq)`` that are not cached yet, the mask over all, the cache.

    Ids no longer than the cache are taken to end with one new token.
    """
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    if cache is not None:
        past = cache[0][0].shape[2]
        input_ids = input_ids[:, past if input_ids.shape[1] > past else -1 :]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "past_key_values": cache}
