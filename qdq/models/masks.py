"""From masks of zeros and ones to the one additive tensor that all layers of a forward pass share."""

import torch
from torch import Tensor

from qdq.models.inputs import check_shape


def additive(keep: Tensor, dtype: torch.dtype) -> Tensor:
    """1 (keep) -> 0, 0 (hide) -> the lowest finite number of ``dtype``."""
    return (1.0 - keep.to(dtype)) * torch.finfo(dtype).min


def _per_query(name: str, mask: Tensor, hidden: Tensor, keys: int) -> Tensor:
    """A mask ``(batch, keys)`` or ``(batch, new, keys)`` with axes for heads and queries."""
    batch, new, _ = hidden.shape
    check_shape(name, mask, [(batch, keys), (batch, new, keys)])
    return mask[:, None] if mask.dim() == 3 else mask[:, None, None, :]


def attention_bias(mask: Tensor | None, hidden: Tensor, *, past: int, causal: bool) -> Tensor | None:
    """Additive mask of self attention, broadcast to ``(batch, heads, new, past + new)``; None if nothing is hidden.

    1. No mask, encoder: None.
    2. ``(batch, keys)``: keys to hide; with ``causal`` also everything behind each query.
    3. ``(batch, new, keys)``: per query, taken as it is; no causal mask is added.
    """
    keys, dtype = past + hidden.shape[1], hidden.dtype
    visible = None if mask is None else _per_query("attention_mask", mask, hidden, keys).to(dtype)
    if causal and (mask is None or mask.dim() == 2):
        rows = torch.arange(past, keys, device=hidden.device)[:, None]
        before = (torch.arange(keys, device=hidden.device)[None, :] <= rows).to(dtype)[None, None]
        # One inversion of the product: two lowest numbers must never be added.
        visible = before if visible is None else before * visible
    return None if visible is None else additive(visible, dtype)


def memory_bias(mask: Tensor | None, memory: Tensor | None, hidden: Tensor) -> Tensor | None:
    """Additive mask of cross attention from ``hidden`` to ``memory``, whose shape is checked, too."""
    if memory is None:
        return None
    check_shape("encoder_hidden_states", memory, [(hidden.shape[0], *memory.shape[1:2], hidden.shape[2])])
    if mask is None:
        return None
    return additive(_per_query("encoder_attention_mask", mask, hidden, memory.shape[1]), hidden.dtype)


def head_mask_rows(mask: Tensor | None, layers: int, heads: int, dtype: torch.dtype) -> Tensor | None:
    """Head mask ``(heads,)`` or ``(layers, heads)`` -> ``(layers, 1, heads, 1, 1)`` in ``dtype``; 1 keeps a head."""
    if mask is None:
        return None
    check_shape("head_mask", mask, [(heads,), (layers, heads)])
    return mask.to(dtype).expand(layers, heads)[:, None, :, None, None]
