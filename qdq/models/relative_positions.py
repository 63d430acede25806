"""Relative positions: terms of the attention scores that depend on the distance between query and key.

Source: Shaw et al. 2018 (relative_key), Huang et al. 2020 (relative_key_query).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from qdq.models.inputs import InputError, is_tracing


@dataclass(frozen=True, kw_only=True)
class RelativePositions:
    """How relative positions enter the scores. The attention block holds the table of distances.

    Args:
        reach: The longest sequence. The table has ``2 * reach - 1`` rows.
        of_keys: Whether keys contribute a term as well (relative_key_query).
        scaled: Whether the terms are divided by the root of the head size, like the scores.
        with_cache: Whether the family supports them together with a cache.
    """

    reach: int
    of_keys: bool = False
    scaled: bool = True
    with_cache: bool = True

    def terms(self, distance: nn.Module, query: Tensor, key: Tensor, *, cached: bool) -> Tensor:
        """Return the position terms of the scores, which broadcast to ``(batch, heads, new, keys)``.

        Args:
            distance: The embedding of distances.
            query: ``(batch, heads, new, head size)``.
            key: ``(batch, heads, keys, head size)``.
            cached: Whether the first keys come from a cache.

        Raises:
            InputError: There are more tokens than ``reach``, or a cache that the family does not support.
        """
        new, total, reach = query.shape[2], key.shape[2], self.reach
        if not is_tracing():
            if cached and not self.with_cache:
                raise InputError("relative positions cannot be used together with a cache in this family")
            if max(new, total) > reach:
                raise InputError(f"relative positions reach {reach} tokens, got {new} queries and {total} keys")
        # With a cache, upstream measures every new query from the last position, which is exact only for one new token
        # at a time. The numbers have to be the same, so we do too.
        left = torch.arange(new, device=query.device)[:, None] if not cached else total - 1
        right = torch.arange(total, device=query.device)[None, :]
        table = distance(left - right + (reach - 1)).to(query.dtype)  # (new or 1, keys, head size)
        terms = torch.einsum("bhld,lrd->bhlr", query, table)
        if self.of_keys:
            terms = terms + torch.einsum("bhrd,lrd->bhlr", key, table)
        return terms
