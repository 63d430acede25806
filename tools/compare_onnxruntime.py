"""Compare the file that qdq writes for ONNX Runtime with those that ONNX Runtime's own tools make of the float file.

    python tools/compare_onnxruntime.py quickstart/ [--rounds 7] [--threads 2] [--profile]

Needs a directory that `qdq quickstart` wrote. The candidates are the float file; ONNX Runtime's `quantize_dynamic` of
it, per channel; the file of qdq; the same with the fusion that ResidualSumPass prevents, to see what the pass gains;
and the openvino file, which leaves the integer products to ONNX Runtime's pattern matching. They are timed interleaved,
one model per process. The cosine compares mean-pooled sentence embeddings with those of the float file, on the held-out
sample text.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from onnxruntime.quantization import QuantType, quantize_dynamic

from exporters.benchmark import Candidate, Shape, benchmark
from exporters.runners import OnnxRuntimeRunner
from exporters.verification.verify import cosine
from qdq.data.text import encode_batches, read_samples, sample_text
from qdq.data.tokenizer import load_tokenizer

SHAPES = [Shape(1, 128), Shape(8, 128)]


def candidates(folder: Path, scratch: Path) -> list[Candidate]:
    in_float = folder / "float/model.onnx"
    dynamic = scratch / "quantize_dynamic.onnx"
    quantize_dynamic(in_float, dynamic, per_channel=True, weight_type=QuantType.QInt8)
    fused = scratch / "with_skip_layer_norm.onnx"
    model = onnx.load(folder / "onnxruntime/model.onnx")
    for node in model.graph.node:
        if node.op_type == "Sum":
            node.op_type = "Add"
    onnx.save(model, fused)
    return [
        Candidate("float", in_float),
        Candidate("quantize_dynamic", dynamic),
        Candidate("ours", folder / "onnxruntime/model.onnx"),
        Candidate("ours, Add for Sum", fused),
        Candidate("openvino file", folder / "openvino/model.onnx"),
    ]


def embeddings(path: Path, folder: Path) -> np.ndarray:
    runner = OnnxRuntimeRunner(path)
    tokenizer = load_tokenizer(folder / "checkpoint")
    rows = []
    for batch in encode_batches(read_samples(sample_text("heldout")), tokenizer, batch_size=8, seq_len=128):
        arrays = {name: value.numpy() for name, value in batch.items()}
        mask = arrays["attention_mask"][..., np.newaxis]
        rows.append((runner(arrays)["last_hidden_state"] * mask).sum(axis=1) / mask.sum(axis=1))
    return np.concatenate(rows)


def profile(path: Path, scratch: Path, *, threads: int, runs: int = 20) -> list[tuple[str, float, int]]:
    """Return milliseconds and calls of each operator in one run at 8 x 128."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_profiling = True
    options.profile_file_prefix = str(scratch / "profile")
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(0).integers(1, 30_000, (8, 128))
    given = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
    for _ in range(runs):
        session.run(None, {value.name: given[value.name] for value in session.get_inputs()})
    spent: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    for event in json.loads(Path(session.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            spent[event["args"]["op_name"]] += event["dur"] / 1e3 / runs
            calls[event["args"]["op_name"]] += 1
    return [(name, ms, calls[name] // runs) for name, ms in spent.most_common(14)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--profile", action="store_true", help="also show where the time goes, at 8 x 128")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        models = candidates(options.folder, scratch)
        result = benchmark(models, SHAPES, threads=options.threads, rounds=options.rounds)
        reference = embeddings(models[0].path, options.folder)
        print(f"{result.machine.cpu}, int8: {', '.join(result.machine.int8_instructions)}, {options.threads} threads")
        print(f"{'model':20s} {'MB':>6s} {'cosine':>7s}" + "".join(f" {s!s:>10s} {'speed-up':>9s}" for s in SHAPES))
        for model in models:
            line = f"{model.name:20s} {model.path.stat().st_size / 1e6:6.1f}"
            line += f" {cosine(reference, embeddings(model.path, options.folder)):7.4f}"
            for shape in SHAPES:
                median = next(t.median_s for t in result.timings if (t.name, t.shape) == (model.name, shape))
                line += f" {1e3 * median:7.1f} ms {result.speedup(model.name, 'float', shape):8.2f}x"
            print(line)
        if options.profile:
            for model in models[:4]:
                print(f"\n{model.name}: milliseconds in one run at 8 x 128, calls")
                for operator, ms, calls in profile(model.path, scratch, threads=options.threads):
                    print(f"  {operator:26s} {ms:8.2f} {calls:4d}")


if __name__ == "__main__":
    main()
