"""One of two processes that train a wrapped model together; started by test_distributed.py.

    python ddp_worker.py RANK WORLD FOLDER DEVICE KIND ...

Loads ``KIND.pt`` (a model, its inputs), takes its part of the batch, and writes the gradients it ends up with, and the
parameters after one step, to ``KIND.RANK.pt``.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel


def main() -> None:
    rank, world, folder, device, *kinds = sys.argv[1:]
    torch.set_num_threads(1)
    backend = "gloo" if device == "cpu" else "nccl"
    store = f"file://{folder}/rendezvous"
    distributed.init_process_group(backend, init_method=store, rank=int(rank), world_size=int(world))
    target = torch.device(device if device == "cpu" else f"{device}:{rank}")
    for kind in kinds:
        model, inputs = torch.load(Path(folder) / f"{kind}.pt", weights_only=False)
        part = {name: tensor.chunk(int(world))[int(rank)].to(target) for name, tensor in inputs.items()}
        parallel = DistributedDataParallel(model.to(target).train())
        optimizer = torch.optim.SGD(parallel.parameters(), lr=0.1)
        parallel(**part).loss.backward()
        gradients = {name: p.grad.clone().cpu() for name, p in model.named_parameters() if p.grad is not None}
        optimizer.step()
        state = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
        torch.save((gradients, state), Path(folder) / f"{kind}.{rank}.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
