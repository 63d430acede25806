"""Processes and threads of a command."""

from __future__ import annotations

import os

__all__ = ["is_first", "set_threads"]


def is_first() -> bool:
    """Whether this process is to be heard: of those that torchrun or accelerate started only one is."""
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


def set_threads(count: int | None) -> None:
    """Let torch compute with so many threads; with its own choice when None."""
    if count is not None:
        import torch

        torch.set_num_threads(count)
