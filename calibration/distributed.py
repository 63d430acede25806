"""Calibration in several processes: each runs every n-th batch, and in the end all have the statistics of all."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist

from qdq.errors import CalibrationError
from qdq.processes import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["SINGLE_PROCESS", "ProcessRank", "torchrun_process"]

T = TypeVar("T")


@dataclass(frozen=True)
class ProcessRank:
    """One of the processes that calibrate together.

    Args:
        rank: The number of this process, 0 and up.
        world_size: The number of processes. With more than one, torch's default process group must be initialized.
    """

    rank: int = 0
    world_size: int = 1

    def owns(self, batch: int) -> bool:
        """Return whether this process runs the batch with this number, 0 and up."""
        # In turn, not in blocks: the number of batches is not known before the data ends.
        return batch % self.world_size == self.rank

    def gather(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank. All of them must call it."""
        if self.world_size == 1:
            return [value]
        gathered: list[Any] = [None] * self.world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def run_and_exchange(self, work: Callable[[], T], collected: Callable[[], Any]) -> tuple[T, dict[int, Any]]:
        """Do the work of this process, then exchange what was collected. All processes must call it.

        Args:
            work: The work of this process.
            collected: Returns what the other processes should get, after the work is done or has failed.

        Returns:
            The result of ``work``, and what the other processes collected, by rank.

        Raises:
            CalibrationError: The work of any process failed. Every process raises, because each would otherwise wait
                for the one that failed.
        """
        if self.world_size == 1:
            return work(), {}
        results, problem = [], None
        try:
            results.append(work())
        except CalibrationError as error:
            problem = str(error)
        # Gather after a failure too, because the other processes are waiting in this call.
        everyone = self.gather((problem, collected()))
        if problems := dict.fromkeys(problem for problem, _ in everyone if problem):
            raise CalibrationError("\n".join(problems))
        return results[0], {rank: other for rank, (_, other) in enumerate(everyone) if rank != self.rank}


SINGLE_PROCESS = ProcessRank()
"""The only process there is."""


@contextmanager
def torchrun_process() -> Iterator[ProcessRank]:
    """Give the rank that torchrun assigned to this process, with a process group inside the block.

    Without torchrun, give :data:`SINGLE_PROCESS`.
    """
    if Process.of_torchrun().world_size == 1:
        yield SINGLE_PROCESS
        return
    # gloo works without accelerators, and only statistics are exchanged, which are small.
    dist.init_process_group("gloo")
    try:
        yield ProcessRank(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
