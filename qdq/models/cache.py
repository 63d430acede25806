"""Helpers for decoding step by step with ``past_key_values``."""

import torch
from torch import Tensor, nn

from qdq.models.inputs import InputError
from qdq.models.outputs import Cache


def reorder_cache(cache: Cache, beams: Tensor) -> Cache:
    """Return ``cache`` with the rows of its batch axis that ``beams`` names, after a step of beam search.

    Args:
        cache: The cache of the step.
        beams: For every row of the next step, the row of ``cache`` that it continues, ``(batch,)``.
    """
    return tuple(tuple(tensor.index_select(0, beams.to(tensor.device)) for tensor in layer) for layer in cache)


def new_tokens(input_ids: Tensor, cache: Cache | None, attention_mask: Tensor | None = None) -> dict[str, object]:
    """Return the arguments of the next call of a decoder: the ids that are not cached yet, the mask, the cache.

    If there are no more ids than cached positions, only the last one counts as new.

    Args:
        input_ids: All ids so far, ``(batch, seq)``.
        cache: The ``past_key_values`` of the previous call. None before the first call.
        attention_mask: The mask over all ids. None keeps every token visible.
    """
    attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    if cache is not None:
        past = cache[0][0].shape[2]
        input_ids = input_ids[:, past if input_ids.shape[1] > past else -1 :]
    return {"input_ids": input_ids, "attention_mask": attention_mask, "past_key_values": cache}


def append_hidden_padding(
    input_ids: Tensor, attention_mask: Tensor | None, pad_token_id: int | None
) -> dict[str, Tensor]:
    """Return the arguments with which the masked language models of the BERT families predict one more token.

    A padding token is appended, and hidden from all tokens by the mask. The logits at its position are the prediction.

    Args:
        input_ids: The ids so far, ``(batch, seq)``.
        attention_mask: Their mask. None keeps every token visible.
        pad_token_id: The padding token of the configuration.

    Raises:
        InputError: The configuration has no padding token.
    """
    if pad_token_id is None:
        raise InputError("pad_token_id is null in the configuration; generation needs a padding token")
    attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
    pad = nn.functional.pad
    return {"input_ids": pad(input_ids, (0, 1), value=pad_token_id), "attention_mask": pad(attention_mask, (0, 1))}
