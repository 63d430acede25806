"""Compare the time of calibration with pytorch-quantization: collecting statistics, and computing ranges from them.

    python tools/bench_calibration.py MODEL_DIR [--samples 64] [--rounds 3] [--threads 1] [--batch-size 8]

Both run the same model, qdq with the preset `linear`: the input of every linear layer has a histogram. qdq also keeps
histograms of the slots that stay float (products of attention, residual additions). pytorch-quantization has only those
of the linear layers, with separate ones for query, key and value, and counts padding. Its mse calibrator needs a GPU;
without one it gets the tensor on the CPU.

Each library runs in a process of its own. The processes take turns, and each also times the float forward in turns with
collecting, so that a busy machine affects both alike. The figures are processor seconds: `collect` as a multiple of the
float forward, the median over rounds; `mse` and `entropy` for the ranges of all histograms.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

LIBRARIES = ("qdq", "pytorch-quantization")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--library", choices=LIBRARIES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.library:
        print(json.dumps(measure(options)))
        return
    found: dict[str, list[dict[str, float]]] = {name: [] for name in LIBRARIES}
    for _ in range(options.rounds):
        for name in LIBRARIES:
            command = [sys.executable, __file__, *sys.argv[1:], "--library", name]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            found[name].append(json.loads(done.stdout.splitlines()[-1]))
    for name, rounds in found.items():
        median = {key: statistics.median(row[key] for row in rounds) for key in rounds[0]}
        print(
            f"{name:22s} {median['histograms']:3.0f} histograms  float {median['float']:6.2f} s  "
            f"collect {median['collect']:5.2f}x  mse {median['mse']:6.2f} s  entropy {median['entropy']:6.2f} s"
        )


def measure(options: argparse.Namespace) -> dict[str, float]:
    """What one library takes, in processor seconds."""
    import torch

    import qdq
    from qdq.data.text import sample_text

    torch.set_num_threads(options.threads)
    library, model_dir = options.library, options.model_dir
    tokenizer = qdq.load_tokenizer(model_dir)
    texts = islice(qdq.read_samples(sample_text("calibration")), options.samples)
    batches = list(qdq.encode_batches(texts, tokenizer, batch_size=options.batch_size, seq_len=128))
    float_model = qdq.load(model_dir).eval()
    collect, choose, histograms = (ours if library == "qdq" else theirs)(model_dir)

    def forward(some: list[dict[str, Tensor]]) -> None:
        with torch.inference_mode():
            for batch in some:
                float_model(**batch)

    forward(batches[:1])
    collect(batches[:1])
    in_float = in_collect = 0.0
    for batch in batches:  # in turns, batch by batch
        in_float += seconds(lambda batch=batch: forward([batch]))
        in_collect += seconds(lambda batch=batch: collect([batch]))
    return {
        "histograms": histograms(),
        "float": in_float,
        "collect": in_collect / in_float,
        **{method: seconds(lambda method=method: choose(method)) for method in ("mse", "entropy")},
    }


def seconds(work: Callable[[], object]) -> float:
    started = time.process_time()
    work()
    return time.process_time() - started


def ours(model_dir: Path) -> tuple[Callable[[Any], None], Callable[[str], None], Callable[[], int]]:
    import calibration
    import qdq
    from calibration.batches import run_batches
    from qdq.quantization.quantizer import Mode, set_mode
    from qdq.quantization.wrap import named_slots

    model = qdq.quantize(qdq.load(model_dir), "linear").eval()
    masks = {keys: calibration.TokenMask(keys=keys) for keys in (False, True)}
    collectors = {}
    for slot, quantizer in named_slots(model):
        if slot.name != "weight" and quantizer not in collectors:
            keys = slot.module.endswith("attention.context") and slot.name == "input"
            collectors[quantizer] = quantizer.observer = calibration.HistogramCollector(masks[keys])
    set_mode(model, Mode.COLLECT)

    def collect(batches: list[dict[str, Tensor]]) -> None:
        run_batches(model, batches, tuple(masks.values()), lambda _: None)

    def choose(name: str) -> None:
        method = calibration.method_named(name)
        for quantizer, collector in collectors.items():
            method.range(collector, quantizer.spec)

    return collect, choose, lambda: sum(collector.count > 0 for collector in collectors.values())


def theirs(model_dir: Path) -> tuple[Callable[[Any], None], Callable[[str], None], Callable[[], int]]:
    import torch
    from absl import logging
    from pytorch_quantization import calib
    from pytorch_quantization import nn as quant_nn
    from pytorch_quantization.tensor_quant import QuantDescriptor

    import qdq

    logging.set_verbosity(logging.ERROR)
    if not torch.cuda.is_available():
        torch.Tensor.cuda = lambda tensor, *_, **__: tensor  # type: ignore[method-assign, assignment]
    inputs, weights = QuantDescriptor(calib_method="histogram"), QuantDescriptor(axis=(0,))
    model = qdq.load(model_dir).eval()
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear:
            sizes = module.in_features, module.out_features
            wrapped = quant_nn.QuantLinear(*sizes, quant_desc_input=inputs, quant_desc_weight=weights)
            wrapped.weight, wrapped.bias = module.weight, module.bias
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, wrapped)
    quantizers = [module for module in model.modules() if isinstance(module, quant_nn.TensorQuantizer)]
    watching = [quantizer for quantizer in quantizers if isinstance(quantizer._calibrator, calib.HistogramCalibrator)]
    for quantizer in quantizers:
        quantizer.disable()
    for quantizer in watching:
        quantizer.enable()
        quantizer.disable_quant()
        quantizer.enable_calib()

    def collect(batches: list[dict[str, Tensor]]) -> None:
        with torch.no_grad():
            for batch in batches:
                model(**batch)

    def choose(name: str) -> None:
        for quantizer in watching:
            if quantizer._calibrator._calib_hist is not None:
                quantizer._calibrator.compute_amax(name)

    return collect, choose, lambda: sum(q._calibrator._calib_hist is not None for q in watching)


if __name__ == "__main__":
    main()
