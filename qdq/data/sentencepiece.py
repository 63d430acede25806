"""SentencePiece's model files, as far as an encoder needs them: pieces with scores, and the table of normalisation.

The file is one message in Protocol Buffers' wire format (``sentencepiece_model.proto``): fields, each with its number
and kind, one after another. Unknown fields are passed over.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qdq.protobuf import VARINT, read_fields, read_varint

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["UNIGRAM", "SentencePieceModel", "parse_model"]

UNIGRAM = 1

_CONTROL, _UNKNOWN = 3, 2


@dataclass(frozen=True)
class SentencePieceModel:
    """What a model file says.

    Args:
        pieces: Every piece with its score (logarithm of its probability), by id.
        control: Pieces that no text contains, such as ``[CLS]``.
        unknown_id: The id of what is in no piece.
        kind: ``UNIGRAM``, or another number for another algorithm.
        charsmap: The compiled table of normalisation; empty where there is none.
    """

    pieces: tuple[tuple[str, float], ...]
    control: tuple[str, ...]
    unknown_id: int
    kind: int
    charsmap: bytes


def parse_model(data: bytes) -> SentencePieceModel:
    """Read a model file.

    Raises:
        ValueError: The bytes are no such file, or damaged.
    """
    pieces: list[tuple[str, float]] = []
    control: list[str] = []
    unknown_id, kind, charsmap = 0, UNIGRAM, b""
    for number, value in _fields(data):
        if number == 1:  # SentencePiece: 1 piece, 2 score, 3 type
            entry = dict(_fields(_bytes(value)))
            piece, piece_type = _bytes(entry.get(1, b"")).decode("utf-8"), entry.get(3, 1)
            if piece_type == _UNKNOWN:
                unknown_id = len(pieces)
            elif piece_type == _CONTROL:
                control.append(piece)
            pieces.append((piece, struct.unpack("<f", _bytes(entry.get(2, bytes(4))))[0]))
        elif number == 2:  # TrainerSpec: 3 model_type
            found = dict(_fields(_bytes(value))).get(3, UNIGRAM)
            kind = found if isinstance(found, int) else UNIGRAM
        elif number == 3:  # NormalizerSpec: 2 precompiled_charsmap
            charsmap = _bytes(dict(_fields(_bytes(value))).get(2, b""))
    if not pieces:
        raise ValueError("it holds no pieces")
    return SentencePieceModel(tuple(pieces), tuple(control), unknown_id, kind, charsmap)


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Iterate over the fields of a message: the number of each, and its integer or its bytes."""
    for field in read_fields(data):
        if field.wire_type == VARINT:
            yield field.number, read_varint(data, field.begin, field.end)[0]
        else:
            yield field.number, data[field.begin : field.end]


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where bytes are expected")
    return value
