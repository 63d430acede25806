"""Convert masks of zeros and ones to additive masks, once for all layers of a forward pass."""

import torch
from torch import Tensor

from qdq.models.inputs import check_shape


def additive(keep: Tensor, dtype: torch.dtype) -> Tensor:
    """Return an additive mask: 0 where ``keep`` is 1, the lowest finite number of ``dtype`` where it is 0."""
    # Not -inf: a row in which everything is hidden would become NaN in softmax. With the lowest number, its weights are
    # uniform.
    return (1.0 - keep.to(dtype)) * torch.finfo(dtype).min


def _with_head_axis(name: str, mask: Tensor, hidden: Tensor, keys: int) -> Tensor:
    """Return a mask ``(batch, keys)`` or ``(batch, new, keys)`` with axes for heads and queries."""
    batch, new, _ = hidden.shape
    check_shape(name, mask, [(batch, keys), (batch, new, keys)])
    return mask[:, None] if mask.dim() == 3 else mask[:, None, None, :]


def attention_bias(mask: Tensor | None, hidden: Tensor, *, past: int, causal: bool) -> Tensor | None:
    """Return the additive mask of self-attention, which broadcasts to ``(batch, heads, new, past + new)``.

    1. Without a mask, an encoder hides nothing: the result is None.
    2. A mask ``(batch, keys)`` hides keys; with ``causal``, each query's later keys are hidden as well.
    3. A mask ``(batch, new, keys)`` says for each query which keys to hide; no causal mask is added.

    Args:
        mask: 1 = visible, 0 = hidden. None keeps every key visible.
        hidden: The hidden states ``(batch, new, hidden)``.
        past: Number of cached tokens.
        causal: Whether a query sees no later keys.
    """
    keys, dtype = past + hidden.shape[1], hidden.dtype
    visible = None if mask is None else _with_head_axis("attention_mask", mask, hidden, keys).to(dtype)
    if causal and (mask is None or mask.dim() == 2):
        rows = torch.arange(past, keys, device=hidden.device)[:, None]
        before = (torch.arange(keys, device=hidden.device)[None, :] <= rows).to(dtype)[None, None]
        # Multiply before the conversion, since the sum of two lowest numbers would be -inf.
        visible = before if visible is None else before * visible
    return None if visible is None else additive(visible, dtype)


def memory_bias(mask: Tensor | None, memory: Tensor | None, hidden: Tensor) -> Tensor | None:
    """Check ``memory`` and return the additive mask of cross-attention from ``hidden`` to it.

    Args:
        mask: 1 = visible, 0 = hidden; ``(batch, keys)`` or ``(batch, new, keys)``. None keeps every key visible.
        memory: Hidden states of an encoder ``(batch, keys, hidden)``. None if there is no cross-attention.
        hidden: The hidden states ``(batch, new, hidden)``.
    """
    if memory is None:
        return None
    check_shape("encoder_hidden_states", memory, [(hidden.shape[0], *memory.shape[1:2], hidden.shape[2])])
    if mask is None:
        return None
    return additive(_with_head_axis("encoder_attention_mask", mask, hidden, memory.shape[1]), hidden.dtype)


def head_mask_rows(mask: Tensor | None, layers: int, heads: int, dtype: torch.dtype) -> Tensor | None:
    """Return a head mask as ``(layers, 1, heads, 1, 1)``, which multiplies the weights of one layer per row.

    Args:
        mask: ``(heads,)`` for all layers, or ``(layers, heads)``; 1 keeps a head, 0 masks it.
        layers: Number of layers.
        heads: Number of heads.
        dtype: The dtype of the result.
    """
    if mask is None:
        return None
    check_shape("head_mask", mask, [(heads,), (layers, heads)])
    return mask.to(dtype).expand(layers, heads)[:, None, :, None, None]
