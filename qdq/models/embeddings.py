"""Token, position and token-type embeddings."""

import torch
from torch import Tensor, nn

from qdq.models.config import ModelConfig
from qdq.models.inputs import InputError, check_range, check_shape, is_tracing


class Embeddings(nn.Module):
    """Sum of three tables, then LayerNorm, dropout and projection, as far as the family has them.

    The position table exists in every case, as checkpoints carry it, but is added only for absolute positions.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        switches, width, pad = config.switches, config.embedding_width, config.pad_token_id
        self.absolute = config.position_embedding_type == "absolute"
        self.first_position = pad + 1 if switches.positions_from_padding and pad is not None else 0
        self.word = nn.Embedding(config.vocab_size, width, padding_idx=pad)
        padding_row = pad if self.first_position else None
        self.position = nn.Embedding(config.max_position_embeddings, width, padding_idx=padding_row)
        self.token_type = nn.Embedding(config.type_vocab_size, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps) if switches.embedding_norm else None
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.projection = nn.Linear(width, config.hidden_size) if switches.embedding_projection else None

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
            check_range("position_ids", positions, self.position.num_embeddings, what="the table of positions")
        elif self.absolute and length + past > (longest := self.position.num_embeddings - self.first_position):
            cached = f" and {past} cached" if past else ""
            raise InputError(f"a sequence of {length} tokens{cached} is too long: the model takes at most {longest}")
        if types is not None:
            check_shape("token_type_ids", types, [(batch, length)])
            check_range("token_type_ids", types, self.token_type.num_embeddings, what="the token types")
