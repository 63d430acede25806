"""Read and write Protocol Buffers' wire format, without the protobuf package and without copies.

A message is a sequence of fields. Each begins with a key, a varint that holds the number of the field and the type of
its content: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import mmap
    from collections.abc import Iterator

__all__ = [
    "BYTES",
    "FIXED32",
    "FIXED64",
    "VARINT",
    "Field",
    "encode_bytes_field",
    "encode_bytes_header",
    "encode_key",
    "read_fields",
    "read_varint",
]

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
"""Wire types. ``BYTES`` is a length and that many bytes: a string, a message, or packed numbers."""

_LONGEST_VARINT = 10  # bytes, which hold 64 bits


class Field(NamedTuple):
    """Locate one field of a message.

    Args:
        number: Number of the field in its message.
        wire_type: One of ``VARINT``, ``FIXED64``, ``BYTES`` and ``FIXED32``.
        start: Offset of the key.
        begin: Offset of the content.
        end: Offset behind the content.
    """

    number: int
    wire_type: int
    start: int
    begin: int
    end: int


def read_fields(data: bytes | mmap.mmap, begin: int = 0, end: int | None = None) -> Iterator[Field]:
    """Iterate over the fields of the message in ``data[begin:end]``; the contents are not read.

    Args:
        data: The bytes, or a file that is mapped into memory.
        begin: Offset of the message.
        end: Offset behind the message, the end of ``data`` if None.

    Raises:
        ValueError: If the bytes are not a message, or end in the middle of a field.
    """
    position, end = begin, len(data) if end is None else end
    while position < end:
        start = position
        key, content = read_varint(data, position, end)
        number, wire_type = key >> 3, key & 7
        if wire_type == VARINT:
            _, position = read_varint(data, content, end)
        elif wire_type == FIXED64:
            position = content + 8
        elif wire_type == FIXED32:
            position = content + 4
        elif wire_type == BYTES:
            length, content = read_varint(data, content, end)
            position = content + length
        else:
            raise ValueError(f"not protobuf: unknown wire type {wire_type}")
        if position > end or not number:
            raise ValueError("the file ends too early, or is not protobuf")
        yield Field(number, wire_type, start, content, position)


def read_varint(data: bytes | mmap.mmap, position: int, end: int) -> tuple[int, int]:
    """Return the varint at ``position`` and the offset behind it.

    Raises:
        ValueError: If it does not end before ``end``, or is longer than 64 bits.
    """
    value = 0
    for index in range(min(_LONGEST_VARINT, end - position)):
        byte = data[position + index]
        value |= (byte & 0x7F) << 7 * index  # seven bits per byte, the lowest first
        if byte < 0x80:
            return value, position + index + 1
    raise ValueError("the file ends too early, or is not protobuf")


def encode_key(number: int, wire_type: int) -> bytes:
    """Return the key of a field."""
    return _encode_varint(number << 3 | wire_type)


def encode_bytes_header(number: int, size: int) -> bytes:
    """Return the key and the length that stand before the ``size`` bytes of a field."""
    return encode_key(number, BYTES) + _encode_varint(size)


def encode_bytes_field(number: int, content: bytes) -> bytes:
    """Return a whole field of bytes."""
    return encode_bytes_header(number, len(content)) + content


def _encode_varint(value: int) -> bytes:
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)  # the highest bit says that more bytes follow
        value >>= 7
    encoded.append(value)
    return bytes(encoded)
