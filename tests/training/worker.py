"""A training in a process of its own, which can be killed; started by test_resume.py and test_processes.py.

    python worker.py FOLDER OPTIONS

OPTIONS is JSON: family, recipe, settings, resume, die_at (a step, or the name of a moment in saving). Writes
``result.RANK.pt``: the weights it ends with, those of the best evaluation, and the history.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from qdq.training.loop import finetune
from qdq.training.quantization import ready_for_training


def kit() -> Any:
    spec = importlib.util.spec_from_file_location("qdq_training_kit", Path(__file__).with_name("conftest.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module.Kit()


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def sharding() -> Any:
    """An accelerator that shards weights on CPUs: torch can, accelerate itself does so on other devices only."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin, PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType

    plugin = FullyShardedDataParallelPlugin(fsdp_version=1)
    made = Accelerator(fsdp_plugin=plugin)
    changes = {"distributed_type": DistributedType.FSDP, "fsdp_plugin": plugin, "device": torch.device("cpu")}
    for state in (made.state, PartialState):
        state._shared_state.update(changes)

    def whole(wrapped: Any, *, unwrap: bool = True) -> dict[str, torch.Tensor]:
        # accelerate's moves weights to the CPU, which copies nothing here: they are gone when FSDP frees its own
        where = FullStateDictConfig(offload_to_cpu=False)
        with FullyShardedDataParallel.state_dict_type(wrapped, StateDictType.FULL_STATE_DICT, where):
            return {name: tensor.clone() for name, tensor in wrapped.state_dict().items()}

    made.get_state_dict = whole
    return made


def main() -> None:
    folder, options = Path(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(1)
    rank = os.environ.get("RANK", "0")
    tools = kit()
    changes = options.get("changes", {})
    make = functools.partial(tools.quantized, options["recipe"]) if options.get("recipe") else tools.model
    model = make(model_type=options.get("family", "bert"), **changes)
    settings = options["settings"]
    if options.get("recipe"):
        ready_for_training(model, learned=settings.get("ranges") == "learned")
    moment, saves = options.get("die_at"), []
    if isinstance(moment, str):  # "written 2": in the second save, before the new state takes the old one's place
        name, number = moment.split()
        from qdq.training import state

        inner = torch.save

        def save(value: Any, path: Any) -> None:
            saves.append(path)
            if len(saves) == int(number) and name == "torn":
                Path(path).write_bytes(b"PK half of a file")
                die()
            inner(value, path)
            if len(saves) == int(number):
                die()

        state.torch.save = save  # type: ignore[attr-defined]

    def progress(step: int, total: int, _: str) -> None:
        if step == moment:
            die()

    best: dict[str, torch.Tensor] = {}

    def take(current: torch.nn.Module, _: object) -> None:
        best.update({name: tensor.clone() for name, tensor in current.state_dict().items()})

    torch.manual_seed(11 + int(rank))
    rows = options.get("rows", 8)
    result = finetune(
        model,
        torch.utils.data.DataLoader(Rows(tools, rows), batch_size=rows, shuffle=True)
        if options.get("shuffles", True)
        else tools.batches(8, rows),
        evaluate=tools.accuracy,
        state=folder / "state" if options.get("keeps", True) else None,
        resume=options.get("resume", False),
        progress=progress,
        on_best=take,
        accelerator=sharding() if options.get("shards") else None,
        **settings,
    )
    weights = {} if options.get("shards") else {name: t.clone() for name, t in model.state_dict().items()}
    found = {"weights": weights, "best": best, "history": result.history, "log": result.log}
    torch.save(found, folder / f"result.{rank}.pt")


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """The batches, row by row."""

    def __init__(self, tools: Any, rows: int) -> None:
        self._rows = [{k: v[i] for k, v in b.items()} for b in tools.batches(8, rows) for i in range(rows)]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return self._rows[index]


if __name__ == "__main__":
    main()
