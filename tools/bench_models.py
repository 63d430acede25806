"""Time the float models against transformers, with the same attention implementation: forward, training step, loading.

    python tools/bench_models.py [--rounds 7] [--threads 1]

The two take turns, so that a busy machine affects both. The figures are medians, and the median of the ratios in each
round.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

SIZES = {"vocab_size": 30522, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def turns(ours: Callable[[], Any], theirs: Callable[[], Any], rounds: int) -> tuple[float, float, float]:
    """Return the median seconds of both models, and the median of their ratio."""
    ours(), theirs()
    pairs = []
    for index in range(rounds):
        seconds = {}
        for side in (ours, theirs) if index % 2 else (theirs, ours):
            start = time.perf_counter()
            side()
            seconds[side] = time.perf_counter() - start
        pairs.append((seconds[ours], seconds[theirs]))
    medians = [statistics.median(column) for column in zip(*pairs, strict=True)]
    return medians[0], medians[1], statistics.median(mine / other for mine, other in pairs)


def step(model: Any, inputs: dict[str, Any]) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-6)

    def run() -> None:
        optimizer.zero_grad()
        model(**inputs).loss.backward()
        optimizer.step()

    return run


LOAD = {
    "ours": "from qdq.models.huggingface import load_model as load",
    "transformers": "from transformers import BertForMaskedLM\n"
    "load = lambda path: BertForMaskedLM.from_pretrained(path, attn_implementation='eager')",
}


def measure_load(which: str, folder: str) -> tuple[float, ...]:
    """Return seconds to load and run once, and peak memory in MB above the imports, in a fresh process."""
    program = f"""
import time, torch
{LOAD[which]}
def peak():
    status = open("/proc/self/status").read()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024
before, start = peak(), time.perf_counter()
model = load({folder!r})
seconds = time.perf_counter() - start
model.eval()(torch.ones(1, 8, dtype=torch.long))
print(seconds, time.perf_counter() - start, peak() - before)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return tuple(map(float, done.stdout.split()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    import transformers

    from qdq.models.huggingface import load_model

    transformers.utils.logging.disable_progress_bar()
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        config = transformers.BertConfig(**SIZES)
        transformers.BertForMaskedLM(config).save_pretrained(folder)
        size = (Path(folder) / "model.safetensors").stat().st_size / 1e6
        for which in ("ours", "transformers"):
            load, first, peak = min(measure_load(which, folder) for _ in range(3))
            print(f"load {size:.0f} MB, {which}: {load:.2f} s, with first forward {first:.2f} s, peak +{peak:.0f} MB")
        ids = torch.randint(1000, 30000, (4, 128))
        mask = torch.ones_like(ids)
        mask[1, 100:] = 0
        inputs = {"input_ids": ids, "attention_mask": mask}
        for attention in ("eager", "sdpa"):
            ours = load_model(folder, attn_implementation=attention)
            theirs = transformers.BertForMaskedLM.from_pretrained(folder, attn_implementation=attention).eval()
            with torch.no_grad():
                mine, other, ratio = turns(lambda: ours(**inputs), lambda: theirs(**inputs), options.rounds)  # noqa: B023
            print(f"forward {attention}: {mine * 1e3:.0f} ms, transformers {other * 1e3:.0f} ms, ratio {ratio:.3f}")
            labelled = inputs | {"labels": ids}
            mine, other, ratio = turns(
                step(ours.train(), labelled), step(theirs.train(), labelled), max(3, options.rounds // 2)
            )
            print(f"training step {attention}: {mine:.2f} s, transformers {other:.2f} s, ratio {ratio:.3f}")


if __name__ == "__main__":
    main()
