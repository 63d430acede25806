"""Combine the token vectors of a text to one vector, as sentence-transformers does.

The same function is traced into exported files, trained through, and used to evaluate.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from qdq.errors import ConfigError
from qdq.sentence.folder import POOLINGS

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["pool", "without_prompt"]


def pool(hidden: Tensor, mask: Tensor, how: str, *, attended: Tensor | None = None) -> Tensor:
    """Return one vector for each text, ``(batch, hidden)``.

    Case 1: ``mean``, ``max``: of each component, over the tokens.
    Case 2: ``cls``, ``lasttoken``: the vector of the first or the last token.
    Case 3: ``mean_sqrt_len_tokens``: the sum, divided by the square root of the number of tokens.
    Case 4: ``weightedmean``: the mean with weights 1, 2, 3, ... from the first token on.

    Args:
        hidden: Token vectors ``(batch, seq, hidden)``.
        mask: Tokens with 0 do not count, ``(batch, seq)``.
        how: The name of the pooling.
        attended: The attention mask ``(batch, seq)``, where ``mask`` excludes more than padding. The weights of case 4
            begin at its first token.

    Raises:
        ConfigError: There is no such pooling.
    """
    is_visible = mask != 0
    if how == "cls":
        # With padding on the left, the first visible token is not at position 0.
        return hidden[_rows(hidden), is_visible.int().argmax(dim=1)]
    if how == "lasttoken":
        last = torch.where(is_visible, _positions(hidden), 0).amax(dim=1)
        return torch.where(is_visible.any(dim=1, keepdim=True), hidden[_rows(hidden), last], 0)
    visible = is_visible[..., None]
    if how == "max":
        return torch.where(visible, hidden, torch.finfo(hidden.dtype).min).amax(dim=1)
    if how == "weightedmean":
        begins = (mask if attended is None else attended).ne(0).int().argmax(dim=1, keepdim=True)
        weights = torch.where(is_visible, _positions(hidden) - begins + 1, 0)[..., None].to(hidden.dtype)
        return (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp_min(1)
    if how not in POOLINGS:
        raise ConfigError(f"pooling is {how!r}, must be one of {', '.join(POOLINGS)}")
    # A row without visible tokens gives 0 instead of NaN.
    total = torch.where(visible, hidden, 0).sum(dim=1)
    count = visible.sum(dim=1).clamp_min(1).to(hidden.dtype)
    return total / (count if how == "mean" else count.sqrt())


def without_prompt(mask: Tensor, tokens: int) -> Tensor:
    """Return an attention mask in which the first ``tokens`` tokens of each text do not count.

    Args:
        mask: Attention mask ``(batch, seq)``.
        tokens: The number of tokens of the prompt, the first special token included.
    """
    begins = mask.ne(0).int().argmax(dim=1, keepdim=True)
    is_prompt = torch.arange(mask.shape[1], device=mask.device) < begins + tokens
    return torch.where(is_prompt, 0, mask)


def _rows(hidden: Tensor) -> Tensor:
    return torch.arange(hidden.shape[0], device=hidden.device)


def _positions(hidden: Tensor) -> Tensor:
    return torch.arange(hidden.shape[1], device=hidden.device)
