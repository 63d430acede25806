"""A training in a process of its own, which can be killed; see ``TrainingProcesses`` in conftest.py.

    python train_process.py FOLDER OPTIONS

OPTIONS is a JSON object:

    family, recipe, changes    the model; without a recipe it is float
    settings                   of the training
    rows, shuffles             rows of a batch; whether a DataLoader shuffles them
    resumable, resume          whether a resume file is written, and read
    shards                     whether weights are sharded (FSDP)
    die_at                     a step; "torn 2": within the second write of the resume file; "written 2": after this
                               write, before it takes the place of the first one

Writes ``result.RANK.pt``: the fields of ``Trained`` in conftest.py.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from conftest import ToyTask  # beside this file

from qdq.training.loop import finetune
from qdq.training.quantization import ready_for_training


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_save(moment: str) -> None:
    """Kill this process in ``torch.save``, at a moment such as ``torn 2``."""
    name, number = moment.split()
    saved: list[object] = []
    original = torch.save

    def save(value: object, path: Path) -> None:
        saved.append(path)
        is_due = len(saved) == int(number)
        if is_due and name == "torn":
            Path(path).write_bytes(b"PK half of a file")
            die()
        original(value, path)
        if is_due:
            die()

    torch.save = save  # type: ignore[assignment]


def sharding_accelerator() -> Any:
    """An accelerator that shards weights on CPUs: torch can, accelerate itself does so on other devices only."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType

    plugin = FullyShardedDataParallelPlugin(fsdp_version=1)
    accelerator = Accelerator(fsdp_plugin=plugin)
    changes = {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin, "device": torch.device("cpu")}
    for state in (accelerator.state, PartialState):
        state._shared_state.update(changes)

    def get_state_dict(wrapped: Any, *, unwrap: bool = True) -> dict[str, torch.Tensor]:
        # accelerate's moves weights to the CPU, which copies nothing here: they are gone when FSDP frees its own
        config = FullStateDictConfig(offload_to_cpu=False)
        with FullyShardedDataParallel.state_dict_type(wrapped, StateDictType.FULL_STATE_DICT, config):
            return {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}

    accelerator.get_state_dict = get_state_dict
    return accelerator


def main() -> None:
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    rank = os.environ.get("RANK", "0")
    toy = ToyTask()
    recipe, settings = options.get("recipe"), options["settings"]
    model_options = {"model_type": options.get("family", "bert"), **options.get("changes", {})}
    if recipe:
        model = toy.quantized_model(recipe, **model_options)
        ready_for_training(model, learned=settings.get("ranges") == "learned")
    else:
        model = toy.model(**model_options)
    moment = options.get("die_at")
    if isinstance(moment, str):
        die_in_save(moment)

    def progress(step: int, total: int, text: str) -> None:
        if step == moment:
            die()

    best: dict[str, torch.Tensor] = {}

    def keep(current: torch.nn.Module, _: object) -> None:
        best.update({name: tensor.clone() for name, tensor in current.state_dict().items()})

    torch.manual_seed(11 + int(rank))
    rows = options.get("rows", 8)
    result = finetune(
        model,
        torch.utils.data.DataLoader(toy.dataset(8, rows), batch_size=rows, shuffle=True)
        if options.get("shuffles", True)
        else toy.batches(8, rows),
        evaluate=toy.accuracy,
        resume_folder=folder / "resume" if options.get("resumable", True) else None,
        resume=options.get("resume", False),
        progress=progress,
        on_best=keep,
        accelerator=sharding_accelerator() if options.get("shards") else None,
        **settings,
    )
    weights = {} if options.get("shards") else {name: t.clone() for name, t in model.state_dict().items()}
    found = {"weights": weights, "best": best, "history": result.history, "log": result.log}
    torch.save(found, folder / f"result.{rank}.pt")


if __name__ == "__main__":
    main()
