"""Token, position and token-type embeddings."""

import torch
from torch import Tensor, nn

from qdq.models.dataflow import Origin
from qdq.models.inputs import InputError, check_range, check_shape, is_tracing


class Embeddings(nn.Module):
    """Sum of tables, then norm, dropout and projection, as far as there are such.

    Args:
        vocab_size: Rows of the word table.
        width: Width of the tables.
        padding: Row of the word table that gets no gradient.
        positions: Rows of the position table; None for no table.
        first_position: The position of the first token. When it is more than 0, positions count the tokens that are not
            padding, and padding has the position in front.
        adds_positions: Whether the position table is added; checkpoints with relative positions carry it unused.
        token_types: Rows of the table of token types; 0 for no table.
        norm: Normalizes the sum; None for no norm.
        dropout: Behind the norm.
        projection: Width of the hidden states, where a linear layer maps the tables to it.
    """

    def __init__(
        self,
        vocab_size: int,
        width: int,
        *,
        padding: int | None = None,
        positions: int | None = None,
        first_position: int = 0,
        adds_positions: bool = True,
        token_types: int = 0,
        norm: nn.Module | None = None,
        dropout: float = 0.0,
        projection: int | None = None,
    ) -> None:
        super().__init__()
        self.first_position = first_position
        self.word = nn.Embedding(vocab_size, width, padding_idx=padding)
        padding_row = first_position - 1 if first_position else None
        self.position = None if positions is None else nn.Embedding(positions, width, padding_idx=padding_row)
        self.adds_positions = positions is not None and adds_positions
        self.token_type = nn.Embedding(token_types, width) if token_types else None
        self.norm = norm
        self.dropout = nn.Dropout(dropout)
        self.projection = None if projection is None else nn.Linear(width, projection)

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
        name, given = ("input_ids", input_ids) if inputs_embeds is None else ("inputs_embeds", inputs_embeds)
        assert given is not None
        self._check(name, given, token_type_ids, position_ids, past_length)
        words = self.word(given) if inputs_embeds is None else given
        hidden: Tensor = words
        if self.token_type is not None:
            if token_type_ids is None:
                token_type_ids = torch.zeros(1, 1, dtype=torch.long, device=words.device)
            hidden = hidden + self.token_type(token_type_ids)
        if self.position is not None and self.adds_positions:
            if position_ids is None:
                position_ids = self._positions(input_ids, words, past_length)
            hidden = hidden + self.position(position_ids)
        if self.norm is not None:
            hidden = self.norm(hidden)
        hidden = self.dropout(hidden)
        if self.projection is not None:
            hidden = self.projection(hidden)
        return hidden

    def origin(self) -> Origin:
        """Return what makes the hidden states; see :mod:`qdq.models.dataflow`."""
        return Origin(norm=self.norm) if self.projection is None else Origin(linear=self.projection)

    def _positions(self, input_ids: Tensor | None, words: Tensor, past_length: int) -> Tensor:
        """Position of every token, ``(1 or batch, seq)``.

        1. Counted from 0 behind the cache.
        2. RoBERTa: counting the tokens that are not padding, from behind the number of the padding token.
        3. RoBERTa without ids, which shows no padding: counted through, and the cache is not counted either.
        """
        first = self.first_position
        if first and input_ids is not None:
            counted = input_ids.ne(first - 1).long()
            return (counted.cumsum(dim=1) + past_length) * counted + first - 1
        start = first or past_length
        # arange, not a slice of a buffer: a graph with a free sequence length needs no guard for it.
        return torch.arange(start, start + words.shape[1], device=words.device)[None, :]

    def _check(self, name: str, given: Tensor, types: Tensor | None, positions: Tensor | None, past: int) -> None:
        if is_tracing():
            return
        sizes = [] if name == "input_ids" else [self.word.embedding_dim]
        if given.dim() != 2 + len(sizes) or [*given.shape[2:]] != sizes:
            wanted = ", ".join(["batch", "seq", *map(str, sizes)])
            raise InputError(f"{name} has shape {list(given.shape)}, must be [{wanted}]")
        batch, length = given.shape[:2]
        if not sizes:
            check_range(name, given, self.word.num_embeddings, what="the vocabulary")
        if positions is not None:
            check_shape("position_ids", positions, [(batch, length)])
            if self.position is not None:
                check_range("position_ids", positions, self.position.num_embeddings, what="the table of positions")
        elif self.position is not None and self.adds_positions:
            longest = self.position.num_embeddings - self.first_position
            if length + past > longest:
                cached = f" and {past} cached" if past else ""
                raise InputError(
                    f"a sequence of {length} tokens{cached} is too long: the model takes at most {longest}"
                )
        if types is not None:
            if self.token_type is None:
                raise InputError("token_type_ids given, but the model has no token types: leave them out")
            check_shape("token_type_ids", types, [(batch, length)])
            check_range("token_type_ids", types, self.token_type.num_embeddings, what="the token types")
