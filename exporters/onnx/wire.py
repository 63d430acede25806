"""Protobuf's wire format, as far as large ONNX files need it (https://protobuf.dev/programming-guides/encoding)."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator

__all__ = [
    "BYTES",
    "GRAPH_INITIALIZER",
    "LARGE",
    "MODEL_GRAPH",
    "TENSOR_RAW_DATA",
    "VARINT",
    "Field",
    "begin_of",
    "delimited",
    "fields",
    "key_of",
]

MODEL_GRAPH, GRAPH_INITIALIZER, TENSOR_RAW_DATA = 7, 5, 9
"""Numbers of fields in onnx.proto."""

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types."""

LARGE = 1 << 16
"""Bytes of a weight; a smaller one is not worth the trouble and stays in the message."""

Field = tuple[int, int, int, int, int]
"""Number, wire type, start of the field, start and end of its content."""


def fields(data: mmap.mmap, begin: int, end: int) -> Iterator[Field]:
    """The fields of the message that lies in ``data`` from ``begin`` to ``end``.

    Raises:
        ValueError: when that is no message, or ends too early.
    """
    position = begin
    while position < end:
        start = position
        key, position = _varint(data, position, end)
        number, wire = key >> 3, key & 7
        first = position
        if wire == VARINT:
            _, position = _varint(data, position, end)
        elif wire == FIXED64:
            position += 8
        elif wire == FIXED32:
            position += 4
        elif wire == BYTES:
            length, first = _varint(data, position, end)
            position = first + length
        else:
            raise ValueError(f"no such wire type: {wire}")
        if position > end or not number:
            raise ValueError("the file ends too early, or is no protobuf")
        yield number, wire, start, first, position


def _varint(data: mmap.mmap, position: int, end: int) -> tuple[int, int]:
    value = shift = 0
    while position < end and shift < 70:
        byte = data[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7
    raise ValueError("the file ends too early, or is no protobuf")


def key_of(number: int, wire: int) -> bytes:
    """What stands in front of a field."""
    return _written(number << 3 | wire)


def begin_of(number: int, size: int) -> bytes:
    """What stands in front of ``size`` bytes of a field."""
    return key_of(number, BYTES) + _written(size)


def delimited(number: int, content: bytes) -> bytes:
    """A field of bytes."""
    return begin_of(number, len(content)) + content


def _written(value: int) -> bytes:
    """Seven bits a byte, the lowest first; all bytes but the last have their highest bit set."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
