"""Read SentencePiece's model files."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qdq.protobuf import VARINT, read_fields, read_varint

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["UNIGRAM", "SentencePieceModel", "parse_sentencepiece"]


UNIGRAM = 1  # model_type of TrainerSpec
_CONTROL, _UNKNOWN = 3, 2  # types of pieces


@dataclass(frozen=True)
class SentencePieceModel:
    """The contents of a SentencePiece model file.

    Args:
        pieces: The pieces with their scores (the logarithms of their probabilities), in the order of their ids.
        control: Pieces that no text contains, such as ``[CLS]``.
        unknown_id: The id of text that no piece covers.
        kind: The algorithm; 1 for unigrams.
        charsmap: The compiled table of the text normalization; empty if there is none.
    """

    pieces: tuple[tuple[str, float], ...]
    control: tuple[str, ...]
    unknown_id: int
    kind: int
    charsmap: bytes


def parse_sentencepiece(data: bytes) -> SentencePieceModel:
    """Parse a SentencePiece model file.

    The file is one message in the wire format of Protocol Buffers (``sentencepiece_model.proto``): fields with a number
    and a type, one after another. Unknown fields are skipped.

    Raises:
        ValueError: The bytes are not such a file, or they are damaged.
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
    """Yield the fields of a message: the number, and the value as an integer or, for all other types, as bytes."""
    for field in read_fields(data):
        if field.wire_type == VARINT:
            yield field.number, read_varint(data, field.begin, field.end)[0]
        else:
            yield field.number, data[field.begin : field.end]


def _bytes(value: int | bytes) -> bytes:
    if isinstance(value, int):
        raise ValueError("a number where bytes are expected")
    return value
