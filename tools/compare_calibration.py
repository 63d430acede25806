"""Compare the calibration methods: the time to collect statistics and compute ranges, and the accuracy of the outputs.

    python tools/compare_calibration.py MODEL_DIR [--recipe openvino] [--samples 64] [--calibrator max mse ...]

`collect` is the processor time of the whole calibration, as a multiple of the float forward on the same batches.
`choose` is the seconds to compute the ranges of all slots from the statistics. `cosine` compares the mean-pooled last
hidden states of the quantized model with those of the float model, the mean over held-out sentences.
"""

from __future__ import annotations

import argparse
import time
from itertools import islice
from pathlib import Path
from typing import Any

import torch

import calibration
import qdq
from calibration.settings import CALIBRATORS
from qdq.data.text import sample_text
from qdq.quantization.wrap import named_slots


def pooled(model: Any, batches: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    """Return sentence vectors ``(sentences, hidden)``."""
    vectors = []
    with torch.inference_mode():
        for batch in batches:
            mask = batch["attention_mask"][..., None]
            vectors.append((model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1))
    return torch.cat(vectors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("--recipe", default="openvino")
    parser.add_argument("--samples", type=int, default=64)
    parser.add_argument("--calibrator", nargs="+", default=list(CALIBRATORS))
    options = parser.parse_args()

    tokenizer = qdq.load_tokenizer(options.model_dir)
    texts = {
        name: list(islice(qdq.read_samples(sample_text(name)), options.samples)) for name in ("calibration", "heldout")
    }
    batches = {name: list(qdq.encode_batches(t, tokenizer, batch_size=8, seq_len=128)) for name, t in texts.items()}
    float_model = qdq.load(options.model_dir)
    want = pooled(float_model, batches["heldout"])
    pooled(float_model, batches["calibration"])
    started = time.process_time()
    pooled(float_model, batches["calibration"])
    in_float = time.process_time() - started

    model = qdq.load(options.model_dir)
    qdq.quantize(model, options.recipe)
    for name in options.calibrator:
        method = calibration.method_named(name)
        calibration.calibrate(model, batches["calibration"][:1], method=method)
        started = time.process_time()
        calibration.calibrate(model, batches["calibration"], method=method)
        collect = (time.process_time() - started) / in_float
        choose = time_to_choose(model, method)
        cosine = torch.cosine_similarity(pooled(model, batches["heldout"]), want).mean()
        print(f"{name:10s} collect {collect:5.2f}x  choose {choose:5.2f} s  cosine {float(cosine):.6f}", flush=True)


def time_to_choose(model: Any, method: Any) -> float:
    """Return the seconds to compute the ranges of as many slots as the model has, from histograms of normal values."""
    slots = [quantizer.spec for slot, quantizer in named_slots(model) if slot.name != "weight"]
    collectors = [method.collector(calibration.TokenMask()) for _ in slots]
    for n, collector in enumerate(collectors):
        collector.update(torch.randn(20_000, generator=torch.Generator().manual_seed(n)))
    started = time.process_time()
    for spec, collector in zip(slots, collectors, strict=True):
        method.range(collector, spec)
    return time.process_time() - started


if __name__ == "__main__":
    main()
