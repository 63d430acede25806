"""From masks of zeros and ones to the one additive tensor that all layers of a forward pass share."""

from __future__ import annotations

import torch
from torch import Tensor

from qdq.models.inputs import InputError, check_shape


def _additive(keep: Tensor, dtype: torch.dtype) -> Tensor:
    """1 (keep) -> 0, 0 (hide) -> the lowest finite number of ``dtype``."""
    return (1.0 - keep.to(dtype)) * torch.finfo(dtype).min


def attention_bias(
    mask: Tensor | None, *, batch: int, new: int, past: int, causal: bool, dtype: torch.dtype, device: torch.device
) -> Tensor | None:
    """Additive mask of self attention, broadcast to ``(batch, heads, new, past + new)``; None if nothing is hidden.

    1. No mask, encoder: None.
    2. ``(batch, keys)``: keys to hide; with ``causal`` also everything behind each query.
    3. ``(batch, new, keys)``: per query, taken as it is; no causal mask is added.
    """
    keys = past + new
    if mask is not None:
        if mask.dim() not in {2, 3}:
            raise InputError(f"attention_mask has {mask.dim()} axes, must be [batch, keys] or [batch, queries, keys]")
        check_shape("attention_mask", mask, [(batch, keys), (batch, new, keys)])
        if mask.dim() == 3:
            return _additive(mask[:, None], dtype)
        mask = mask[:, None, None, :]
    if not causal:
        return None if mask is None else _additive(mask, dtype)
    rows = torch.arange(past, keys, device=device)[:, None]
    visible = (torch.arange(keys, device=device)[None, :] <= rows).to(dtype)[None, None]
    # One inversion of the product: two lowest numbers must never be added.
    return _additive(visible if mask is None else visible * mask.to(dtype), dtype)


def memory_bias(mask: Tensor | None, *, memory: Tensor, new: int, dtype: torch.dtype) -> Tensor | None:
    """Additive mask of cross attention from a mask ``(batch, keys)`` or ``(batch, new, keys)``."""
    if mask is None:
        return None
    batch, keys = memory.shape[:2]
    if mask.dim() not in {2, 3}:
        raise InputError(
            f"encoder_attention_mask has {mask.dim()} axes, must be [batch, keys] or [batch, queries, keys]"
        )
    check_shape("encoder_attention_mask", mask, [(batch, keys), (batch, new, keys)])
    return _additive(mask[:, None] if mask.dim() == 3 else mask[:, None, None, :], dtype)


def head_mask_rows(mask: Tensor | None, *, layers: int, heads: int, dtype: torch.dtype) -> Tensor | None:
    """Head mask ``(heads,)`` or ``(layers, heads)`` -> ``(layers, 1, heads, 1, 1)`` in ``dtype``; 1 keeps a head."""
    if mask is None:
        return None
    if tuple(mask.shape) not in {(heads,), (layers, heads)}:
        raise InputError(f"head_mask has shape {list(mask.shape)}, must be [{heads}] or [{layers}, {heads}]")
    return mask.to(dtype).expand(layers, heads)[:, None, :, None, None]
