"""What several test files of data need."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write(path: Path, content: str | bytes) -> Path:
    """Write a file as it is given, without translating line ends, and return its path."""
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path
