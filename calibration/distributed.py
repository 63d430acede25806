"""Several processes on one calibration: each takes every n-th batch, and in the end all know what all have seen."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch.distributed as dist

from qdq.errors import CalibrationError
from qdq.processes import Process

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["WHOLE", "Part", "part_of_process"]

T = TypeVar("T")


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

    def together(self, work: Callable[[], T], held: Callable[[], Any]) -> tuple[T, dict[int, Any]]:
        """Do this process's ``work``, then exchange what is held; all processes have to call it.

        Args:
            work: of this process.
            held: gives what the others are to hear, once the work is done or has failed.

        Returns:
            What ``work`` gave, and by rank what the other processes hold.

        Raises:
            CalibrationError: when the work of any process failed: the others would wait for it.
        """
        if self.count == 1:
            return work(), {}
        done, problem = [], None
        try:
            done.append(work())
        except CalibrationError as error:
            problem = str(error)
        everybody = self.gather((problem, held()))
        if problems := dict.fromkeys(problem for problem, _ in everybody if problem):
            raise CalibrationError("\n".join(problems))
        return done[0], {rank: theirs for rank, (_, theirs) in enumerate(everybody) if rank != self.rank}


WHOLE = Part()


@contextmanager
def part_of_process() -> Iterator[Part]:
    """What torchrun has given this process to do, with a process group for as long; everything without torchrun."""
    if Process.of_torchrun().count == 1:
        yield WHOLE
        return
    dist.init_process_group("gloo")
    try:
        yield Part(dist.get_rank(), dist.get_world_size())
    finally:
        dist.destroy_process_group()
