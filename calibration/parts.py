"""Several processes on one calibration: each takes every n-th batch, and in the end all know what all have seen."""

from __future__ import annotations

import os
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.distributed as dist

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["WHOLE", "Part", "is_under_torchrun", "part_of_process"]


@dataclass(frozen=True)
class Part:
    """Which batches are for this process.

    Args:
        rank: 0 and up.
        count: of processes. With more than one, torch's default process group must stand.
    """

    rank: int = 0
    count: int = 1

    def takes(self, batch: int) -> bool:
        """Whether this batch, 0 and up, is for this process."""
        return batch % self.count == self.rank

    def gather(self, value: Any) -> list[Any]:
        """What every process gave, by rank; all have to call it."""
        if self.count == 1:
            return [value]
        gathered: list[Any] = [None] * self.count
        dist.all_gather_object(gathered, value)
        return gathered


WHOLE = Part()


def is_under_torchrun() -> bool:
    """Whether torchrun started this process, beside others."""
    return "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1"


@contextmanager
def part_of_process() -> Iterator[Part]:
    """What torchrun has given this process to do, with a process group for as long; everything without torchrun."""
    if not is_under_torchrun():
        yield WHOLE
        return
    dist.init_process_group("gloo")
    try:
        yield Part(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
