"""Random letters: rows that mean nothing, for smoke tests and timing."""

from __future__ import annotations

import random
from string import ascii_lowercase
from typing import TYPE_CHECKING

from qdq.data.formats import Record

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["random_rows"]


def random_rows(count: int) -> Iterator[Record]:
    """Rows ``text`` of 5 to 60 words of 1 to 9 random letters, the same for the same place in the sequence."""
    generator = random.Random(0)

    def between(low: int, high: int) -> int:
        # random() is the one method whose sequence Python promises to keep across versions
        return low + int(generator.random() * (high - low + 1))

    def word() -> str:
        return "".join(ascii_lowercase[between(0, 25)] for _ in range(between(1, 9)))

    for number in range(1, count + 1):
        yield Record(f"row {number}", {"text": " ".join(word() for _ in range(between(5, 60)))})
