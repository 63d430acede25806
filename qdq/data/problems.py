"""Everything that is wrong with one input, told together."""

from __future__ import annotations

from itertools import chain, repeat

from qdq.errors import DataError, describe_problems

__all__ = ["Problems"]


class Problems:
    """The problems of one input: the first twenty in words, the rest as a number, so that memory does not grow.

    Args:
        subject: The input, as the user knows it.
    """

    LIMIT = 20

    def __init__(self, subject: str) -> None:
        self.subject = subject
        self.count = 0
        self._shown: list[str] = []

    def __bool__(self) -> bool:
        return self.count > 0

    def add(self, place: str, problem: str) -> None:
        """Note a problem of a row or line."""
        self.count += 1
        if len(self._shown) < self.LIMIT:
            self._shown.append(f"{place}: {problem}")

    def raise_if_any(self) -> None:
        """End the reading of an input that has problems.

        Raises:
            DataError: It has.
        """
        if self:
            problems = chain(self._shown, repeat("", self.count - len(self._shown)))
            raise DataError(describe_problems(self.subject, problems, limit=self.LIMIT))
