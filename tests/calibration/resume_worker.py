"""Calibrate a small model with a resume file, in a process that may be killed in the middle.

    python resume_worker.py FOLDER OUTPUT [RANK BATCH]

The process RANK kills itself before BATCH. Without these two arguments the ranges are written to OUTPUT.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import save_file

from calibration import Percentile, calibrate
from calibration.distributed import torchrun_process
from calibration.resume_file import ResumeFile
from qdq.models.registry import build, configure
from qdq.quantization.wrap import named_slots
from qdq.recipes.apply import quantize

if TYPE_CHECKING:
    from collections.abc import Iterator

    from calibration.distributed import ProcessRank
    from qdq.models.model import Model

BATCHES = 9


def data(process: ProcessRank, doomed: tuple[int, int] | None) -> Iterator[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(1)
    for index in range(BATCHES):
        if doomed == (process.rank, index):
            os.kill(os.getpid(), signal.SIGKILL)
        yield {"input_ids": torch.randint(5, 97, (2, 7), generator=generator)}


def tiny() -> Model:
    torch.manual_seed(2)
    sizes = {"vocab_size": 97, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24}
    model = build(configure("bert", **sizes, num_hidden_layers=1, initializer_range=0.3))
    quantize(model, "qdqbert")
    return model


def found(model: Model) -> dict[str, torch.Tensor]:
    return {str(slot): q.range.amax.clone() for slot, q in named_slots(model) if q.range}


def main() -> None:
    folder, output, *rest = sys.argv[1:]
    doomed = (int(rest[0]), int(rest[1])) if rest else None
    torch.set_num_threads(1)
    model = tiny()
    with torchrun_process() as process:
        resume_file = ResumeFile(Path(folder), resume=True, process=process, interval=0.0)
        calibrate(model, data(process, doomed), method=Percentile(99.0), process=process, resume_file=resume_file)
        if process.rank == 0:
            resume_file.remove()
            save_file(found(model), output)


if __name__ == "__main__":
    main()
