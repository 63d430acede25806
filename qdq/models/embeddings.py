"""Token, position and token-type embeddings."""

import torch
from torch import Tensor, nn

from qdq.models.dataflow import Origin
from qdq.models.inputs import InputError, check_range, check_shape, is_tracing


class Embeddings(nn.Module):
    """The sum of up to three tables, then norm, dropout and projection; every step but the word table is optional.

    Args:
        vocab_size: Number of rows of the word table.
        width: Width of the tables.
        padding: The row of the word table that gets no gradient.
        positions: Number of rows of the position table. None leaves the table out.
        first_position: The position of the first token. If it is more than 0, positions count the tokens that are not
            padding, and padding has the position ``first_position - 1``.
        adds_positions: Whether the position table is added. Checkpoints with relative positions hold it unused.
        token_types: Number of rows of the token-type table. 0 leaves the table out.
        norm: Normalizes the sum. None leaves the norm out.
        dropout: Dropout after the norm.
        projection: Width to which a linear layer maps the sum. None leaves the layer out.
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
        # As upstream, the position of padding gets no gradient.
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
        """Embed tokens.

        Args:
            input_ids: ``(batch, seq)``.
            token_type_ids: ``(batch, seq)``. None stands for zeros.
            position_ids: ``(batch or 1, seq)``. None counts from ``past_length``, or from ``first_position``.
            inputs_embeds: Word embeddings ``(batch, seq, width)`` to use instead of those of ``input_ids``.
            past_length: Number of tokens that are cached.

        Returns:
            Hidden states ``(batch, seq, hidden)``.

        Raises:
            InputError: An argument has the wrong shape, or values outside its table.
        """
        name, given = ("input_ids", input_ids) if inputs_embeds is None else ("inputs_embeds", inputs_embeds)
        assert given is not None
        self._check_inputs(name, given, token_type_ids, position_ids, past_length)
        words = self.word(given) if inputs_embeds is None else given
        # Add the tables in upstream's order, since float addition is not associative.
        hidden: Tensor = words
        if self.token_type is not None:
            if token_type_ids is None:
                # One zero broadcasts over batch and sequence.
                token_type_ids = torch.zeros(1, 1, dtype=torch.long, device=words.device)
            hidden = hidden + self.token_type(token_type_ids)
        if self.position is not None and self.adds_positions:
            if position_ids is None:
                position_ids = self._default_positions(input_ids, words, past_length)
            hidden = hidden + self.position(position_ids)
        if self.norm is not None:
            hidden = self.norm(hidden)
        hidden = self.dropout(hidden)
        if self.projection is not None:
            hidden = self.projection(hidden)
        return hidden

    def origin(self) -> Origin:
        """Return what computes the hidden states; see :mod:`qdq.models.dataflow`."""
        return Origin(norm=self.norm) if self.projection is None else Origin(linear=self.projection)

    def _default_positions(self, input_ids: Tensor | None, words: Tensor, past_length: int) -> Tensor:
        """Return the position of every token, ``(1 or batch, seq)``.

        1. If positions begin at 0: count from the number of cached tokens.
        2. If they begin later (RoBERTa): count the tokens that are not padding. Padding gets ``first_position - 1``,
           which is also the number of the padding token.
        3. The same without ids, so that padding is unknown: count all tokens, from ``first_position`` even after a
           cache, as upstream does.
        """
        first = self.first_position
        if first and input_ids is not None:
            counted = input_ids.ne(first - 1).long()  # case 2
            return (counted.cumsum(dim=1) + past_length) * counted + first - 1
        start = first or past_length
        # A slice of a buffer would put a guard on the sequence length into exported graphs; arange does not.
        return torch.arange(start, start + words.shape[1], device=words.device)[None, :]

    def _check_inputs(
        self, name: str, given: Tensor, types: Tensor | None, positions: Tensor | None, past: int
    ) -> None:
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
                raise InputError("the model has no token types: leave token_type_ids out")
            check_shape("token_type_ids", types, [(batch, length)])
            check_range("token_type_ids", types, self.token_type.num_embeddings, what="the token types")
