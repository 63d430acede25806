"""Threads of a command."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["ThreadsOption", "set_threads"]

ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        metavar="N",
        help="Number of threads; by default torch or the runtime chooses.",
        min=1,
    ),
]


def set_threads(count: int | None) -> None:
    """Set the number of threads of torch; None leaves the choice to torch."""
    if count is not None:
        import torch

        torch.set_num_threads(count)
