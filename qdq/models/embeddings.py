"""Token, position and token-type embeddings."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qdq.models.inputs import InputError, check_range, check_shape, is_tracing

__all__ = ["Embeddings"]


class Embeddings(nn.Module):
    """Sum of three tables, optional LayerNorm, dropout, optional projection from ``width`` to ``hidden_size``.

    The position table exists in every case, as checkpoints carry it, but is added only when ``absolute``. With
    ``positions_from_padding`` (RoBERTa) positions count tokens other than ``pad_token_id`` and start behind it.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        width: int,
        max_positions: int,
        type_vocab_size: int,
        pad_token_id: int | None,
        dropout: float,
        eps: float,
        norm: bool = True,
        absolute: bool = True,
        positions_from_padding: bool = False,
        hidden_size: int | None = None,
    ) -> None:
        super().__init__()
        self.absolute = absolute
        self.positions_from_padding = positions_from_padding
        self.pad_token_id = pad_token_id
        self.word = nn.Embedding(vocab_size, width, padding_idx=pad_token_id)
        self.position = nn.Embedding(max_positions, width, padding_idx=pad_token_id if positions_from_padding else None)
        self.token_type = nn.Embedding(type_vocab_size, width)
        self.norm = nn.LayerNorm(width, eps=eps) if norm else None
        self.dropout = nn.Dropout(dropout)
        self.projection = None if hidden_size is None else nn.Linear(width, hidden_size)

    def forward(
        self,
        input_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        past_length: int = 0,
    ) -> Tensor:
        """Embed ``input_ids`` ``(batch, seq)`` or take ``inputs_embeds`` ``(batch, seq, width)`` in their place.

        Token types default to zeros, positions to ``past_length, past_length + 1, ...`` (or the padding rule).
        Returns ``(batch, seq, hidden)``.
        """
        self._check(input_ids, token_type_ids, position_ids, inputs_embeds, past_length)
        words = self.word(input_ids) if inputs_embeds is None else inputs_embeds
        if token_type_ids is None:
            token_type_ids = torch.zeros(1, 1, dtype=torch.long, device=words.device)
        hidden: Tensor = words + self.token_type(token_type_ids)
        if self.absolute:
            if position_ids is None:
                position_ids = self._positions(input_ids, words, past_length)
            hidden = hidden + self.position(position_ids)
        if self.norm is not None:
            hidden = self.norm(hidden)
        hidden = self.dropout(hidden)
        if self.projection is not None:
            hidden = self.projection(hidden)
        return hidden

    def _positions(self, input_ids: Tensor | None, words: Tensor, past_length: int) -> Tensor:
        """Position of every token, ``(1 or batch, seq)``."""
        start, device = past_length, words.device
        if self.positions_from_padding and self.pad_token_id is not None:
            if input_ids is not None:
                counted = input_ids.ne(self.pad_token_id).long()
                return (counted.cumsum(dim=1) + past_length) * counted + self.pad_token_id
            start = self.pad_token_id + 1  # embeddings hide which token is padding; the cache is not counted either
        # arange, not a slice of a buffer: a graph with a free sequence length needs no guard for it.
        return torch.arange(start, start + words.shape[1], device=device)[None, :]

    def _check(
        self,
        input_ids: Tensor | None,
        token_type_ids: Tensor | None,
        position_ids: Tensor | None,
        inputs_embeds: Tensor | None,
        past_length: int,
    ) -> None:
        if is_tracing():
            return
        given = input_ids if inputs_embeds is None else inputs_embeds
        rank, what = (2, "[batch, seq]") if inputs_embeds is None else (3, f"[batch, seq, {self.word.embedding_dim}]")
        if given is None or given.dim() != rank or (rank == 3 and given.shape[2] != self.word.embedding_dim):
            name = "input_ids" if inputs_embeds is None else "inputs_embeds"
            raise InputError(f"{name} has shape {None if given is None else list(given.shape)}, must be {what}")
        batch, length = given.shape[:2]
        if position_ids is None:
            first = self.position.padding_idx + 1 if self.position.padding_idx is not None else 0
            longest = self.position.num_embeddings - first
            if self.absolute and length + past_length > longest:
                cached = f" and {past_length} cached" if past_length else ""
                raise InputError(
                    f"a sequence of {length} tokens{cached} is too long: the model takes at most {longest}"
                )
        else:
            check_shape("position_ids", position_ids, [(batch, length)])
            check_range(
                "position_ids", position_ids, self.position.num_embeddings, what="the rows of the position table"
            )
        if token_type_ids is not None:
            check_shape("token_type_ids", token_type_ids, [(batch, length)])
            check_range("token_type_ids", token_type_ids, self.token_type.num_embeddings, what="the token types")
        if inputs_embeds is None:
            check_range("input_ids", input_ids, self.word.num_embeddings, what="the vocabulary")
