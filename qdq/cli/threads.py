"""Threads of a command."""

from __future__ import annotations

__all__ = ["set_threads"]


def set_threads(count: int | None) -> None:
    """Set the number of threads of torch; None leaves the choice to torch."""
    if count is not None:
        import torch

        torch.set_num_threads(count)
