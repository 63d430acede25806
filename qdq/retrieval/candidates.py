"""Pair a question with blocks for the reader, and find the answers in them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from qdq.data.batches import padded
from qdq.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tokenizers import Encoding, Tokenizer

__all__ = ["Candidates", "Targets", "find_answers", "pair_with_blocks"]


@dataclass(frozen=True)
class Candidates:
    """Rows ``[CLS] question [SEP] block [SEP]`` with padding, one for each of ``k`` blocks.

    Args:
        input_ids: Token ids ``(k, seq)``.
        attention_mask: 1 for tokens that are not padding ``(k, seq)``.
        token_type_ids: 1 for the tokens of the block ``(k, seq)``.
        block_mask: Whether a token is of the text of the block ``(k, seq)``.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor
    block_mask: Tensor


@dataclass(frozen=True)
class Targets:
    """Where the answers are in the rows of ``k`` blocks.

    Args:
        has_answers: Whether a row has an answer ``(k,)``.
        start_positions: The first tokens of the answers ``(k, matches)``, padded with -1.
        end_positions: The last tokens of the answers ``(k, matches)``, padded with -1.
    """

    has_answers: Tensor
    start_positions: Tensor
    end_positions: Tensor


def pair_with_blocks(
    question: str,
    blocks: Sequence[str],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    min_length: int = 0,
    pad_token_id: int = 0,
) -> Candidates:
    """Pair the question with each block.

    Args:
        question: The question.
        blocks: The texts of the blocks.
        tokenizer: The tokenizer of the reader.
        max_length: The largest number of tokens in a row; the longer of the two texts is cut.
        min_length: The smallest number of tokens in a row, padding included.
        pad_token_id: The padding token.

    Raises:
        DataError: The question leaves no room for any block.
    """
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    encodings: list[Encoding] = tokenizer.encode_batch([(question, block) for block in blocks])
    tokenizer.no_truncation()
    longest = max(min_length, *(len(encoding) for encoding in encodings))

    def rows(name: str, fill: int) -> Tensor:
        return torch.from_numpy(padded([getattr(encoding, name) for encoding in encodings], longest, fill))

    types = rows("type_ids", 0)
    # The last separator has the token type of the block, but is not of its text.
    mask = (types == 1) & (rows("special_tokens_mask", 1) == 0)
    if not bool(mask.any()):
        raise DataError(f"the question leaves no room for a block in {max_length} tokens: shorten it")
    return Candidates(rows("ids", pad_token_id), rows("attention_mask", 0), types, mask)


def find_answers(candidates: Candidates, answers: Sequence[Sequence[int]], sep_token_id: int) -> Targets:
    """Find all occurrences of answers between the first and the second separator of each row.

    Args:
        candidates: The rows.
        answers: The token ids of the answers.
        sep_token_id: The separator.

    Returns:
        The occurrences, answer by answer and from left to right; they may overlap.
    """
    found: list[list[tuple[int, int]]] = []
    for row in candidates.input_ids.tolist():
        separators = [position for position, token in enumerate(row) if token == sep_token_id]
        begin, end = separators[0] + 1, separators[1] if len(separators) > 1 else len(row)
        matches = []
        for answer in map(list, answers):
            size = len(answer)
            matches += [
                (position, position + size - 1)
                for position in range(begin, end - size + 1)
                if size and row[position : position + size] == answer
            ]
        found.append(matches)
    # Rows have different numbers of matches; one column at least keeps the tensors two-dimensional.
    widest = max(1, *(len(matches) for matches in found)) if found else 1

    def column(which: int) -> Tensor:
        return torch.tensor([[match[which] for match in row] + [-1] * (widest - len(row)) for row in found])

    return Targets(torch.tensor([bool(row) for row in found]), column(0), column(1))
