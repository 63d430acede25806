"""A question with each of its blocks, as the reader takes them, and where the answers are in them."""

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
    """Rows ``[CLS] question [SEP] block [SEP]`` and padding, one for each block ``(k, seq)``.

    ``block_mask`` is true where a token belongs to the block itself.
    """

    input_ids: Tensor
    attention_mask: Tensor
    token_type_ids: Tensor
    block_mask: Tensor


@dataclass(frozen=True)
class Targets:
    """First and last tokens of the answers ``(k, matches)``, padded with -1, and whether there are any ``(k,)``."""

    has_answers: Tensor
    start_positions: Tensor
    end_positions: Tensor


def pair_with_blocks(
    question: str, blocks: Sequence[str], tokenizer: Tokenizer, *, max_length: int, pad_token_id: int = 0
) -> Candidates:
    """The question with each of ``blocks``; the longer of the two is cut where they exceed ``max_length`` together.

    Raises:
        DataError: nothing is left of a block beside the question.
    """
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length, strategy="longest_first")
    encodings: list[Encoding] = tokenizer.encode_batch([(question, block) for block in blocks])
    tokenizer.no_truncation()
    longest = max(len(encoding) for encoding in encodings)

    def rows(name: str, fill: int) -> Tensor:
        return torch.from_numpy(padded([getattr(encoding, name) for encoding in encodings], longest, fill))

    types = rows("type_ids", 0)
    mask = (types == 1) & (rows("special_tokens_mask", 1) == 0)
    if not bool(mask.any()):
        raise DataError(f"nothing is left of the blocks beside the question in {max_length} tokens: ask it shorter")
    return Candidates(rows("ids", pad_token_id), rows("attention_mask", 0), types, mask)


def find_answers(candidates: Candidates, answers: Sequence[Sequence[int]], sep_token_id: int) -> Targets:
    """Every place between the first and the second separator of a row at which the tokens of an answer stand.

    Answer by answer, each from left to right; matches may overlap.
    """
    found: list[list[tuple[int, int]]] = []
    for row in candidates.input_ids.tolist():
        separators = [place for place, token in enumerate(row) if token == sep_token_id]
        begin, end = separators[0] + 1, separators[1] if len(separators) > 1 else len(row)
        matches = []
        for answer in map(list, answers):
            size = len(answer)
            matches += [
                (place, place + size - 1)
                for place in range(begin, end - size + 1)
                if size and row[place : place + size] == answer
            ]
        found.append(matches)
    widest = max(1, *(len(matches) for matches in found)) if found else 1

    def column(which: int) -> Tensor:
        return torch.tensor([[match[which] for match in row] + [-1] * (widest - len(row)) for row in found])

    return Targets(torch.tensor([bool(row) for row in found]), column(0), column(1))
