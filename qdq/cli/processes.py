"""Which of several processes speaks."""

from __future__ import annotations

import os

__all__ = ["is_first"]


def is_first() -> bool:
    """Whether this process is to be heard: of those that torchrun or accelerate started only one is."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"
