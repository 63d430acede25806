"""Find the recipe whose int8 file is fastest on this machine, among those that stay close to the float model.

Static ranges cost nothing at run time. Dynamic ranges read every tensor once more and clip fewer values. Which of them
is faster depends on the CPU and on the shape, so it is measured.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.benchmark import Candidate, Machine, Shape, benchmark
from exporters.directory import export
from exporters.runners import OnnxRuntimeRunner
from exporters.verification.verify import cosine
from qdq.errors import CalibrationError, ConfigError, ExportError, VerificationError, describe_problems
from qdq.quantization.wrap import named_slots
from qdq.recipes.apply import apply_recipe
from qdq.recipes.recipe import load_recipe
from qdq.source import MODEL_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from exporters.interface import ExportInterface
    from qdq.source import ModelDirectory

__all__ = ["MIN_COSINE", "TuningCandidate", "TuningResult", "choose", "text_vectors", "tune"]

MIN_COSINE = 0.99
"""Default of the smallest cosine between the text vectors of an int8 file and those of the float file."""

PRESETS = ("onnxruntime", "dynamic")
"""Recipes that are tried besides the checkpoint's own: static ranges and dynamic ranges."""

_FLOAT = "float"
_OWN = "as calibrated"


@dataclass(frozen=True)
class TuningCandidate:
    """Hold the result of one recipe that was tried.

    Args:
        name: Name of the recipe; ``float`` for the float file, ``as calibrated`` for the checkpoint's own recipe.
        recipe: Recipe to export with; None for those two.
        median_s: Median time of a run in seconds, None if the file was not run.
        speedup: Speed-up over the float file, the median over the rounds.
        cosine: Cosine between the text vectors of this file and those of the float file.
        refused: Why the recipe could not be exported; None if it could.
    """

    name: str
    recipe: str | None = None
    median_s: float | None = None
    speedup: float | None = None
    cosine: float | None = None
    refused: str | None = None


@dataclass(frozen=True)
class TuningResult:
    """Hold the result of :func:`tune`.

    Args:
        rows: The float file, then every recipe that was tried.
        chosen: Name of the fastest recipe that reaches ``min_cosine``.
        why: The reason for that choice, in words.
        shape: The shape that was timed.
        threads: Threads of the runtime.
        min_cosine: The smallest cosine that was allowed.
        machine: The machine that was timed.
    """

    rows: tuple[TuningCandidate, ...]
    chosen: str
    why: str
    shape: Shape
    threads: int
    min_cosine: float
    machine: Machine

    @property
    def recipe(self) -> str | None:
        """The recipe to export with; None for the checkpoint's own."""
        return next(row.recipe for row in self.rows if row.name == self.chosen)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self)


def tune(
    checkpoint: str | Path | ModelDirectory,
    *,
    shape: Shape | None = None,
    min_cosine: float = MIN_COSINE,
    threads: int = 2,
    rounds: int = 5,
    recipe: str | None = None,
    opset: int | None = None,
    interface: ExportInterface | None = None,
    isa: str = "any",
    progress: Callable[[str], None] | None = None,
) -> TuningResult:
    """Export the checkpoint with every recipe for ONNX Runtime, compare the files with the float file, and time them.

    The files are written to a temporary directory.

    Args:
        checkpoint: Directory of a quantized checkpoint.
        shape: The shape to time, 8 x 128 if None.
        min_cosine: The smallest cosine that a recipe must reach, -1 to 1.
        threads: Threads of the runtime.
        rounds: Number of interleaved rounds, each in fresh processes.
        recipe: Preset or file to try instead of the checkpoint's own recipe.
        opset: See :func:`exporters.directory.export`.
        interface: See :func:`exporters.directory.export`.
        isa: See :func:`exporters.directory.export`.
        progress: Called with a description of each step.

    Raises:
        CheckpointError: If the checkpoint cannot be read.
        ConfigError: If ``min_cosine`` is not from -1 to 1.
        VerificationError: If no recipe reaches ``min_cosine``. Each is listed with its cosine.
    """
    if not -1 <= min_cosine <= 1:
        raise ConfigError(f"the least cosine is {min_cosine:g}, must be from -1 to 1")
    shape = shape or Shape(8, 128)
    tell: Callable[[str], None] = progress or (lambda _: None)
    with TemporaryDirectory(prefix="qdq-tune-") as name:
        folder = Path(name)
        tell("exporting the float model")
        export(checkpoint, folder / _FLOAT, target=None, opset=opset, interface=interface)
        rows = []
        for label, wanted in _candidates(checkpoint, recipe):
            tell(f"exporting {label}")
            try:
                export(
                    checkpoint,
                    folder / label,
                    target="onnxruntime",
                    recipe=wanted,
                    opset=opset,
                    interface=interface,
                    isa=isa,
                )
                rows.append(TuningCandidate(label, wanted))
            except (ExportError, CalibrationError) as error:
                rows.append(TuningCandidate(label, wanted, refused=" ".join(str(error).split())))
        files = {row.name: folder / row.name / MODEL_FILE for row in rows if row.refused is None}
        tell("comparing with the float model")
        cosines = _cosines(checkpoint, folder / _FLOAT / MODEL_FILE, files, interface)
        candidates = [Candidate(_FLOAT, folder / _FLOAT / MODEL_FILE), *(Candidate(*item) for item in files.items())]
        result = benchmark(
            candidates,
            [shape],
            threads=threads,
            rounds=rounds,
            progress=lambda done, total, name: tell(f"timing {name} ({done}/{total})"),
        )
    medians = {timing.name: timing.median_s for timing in result.timings}
    measured = [TuningCandidate(_FLOAT, None, medians[_FLOAT], 1.0, 1.0)]
    for row in rows:
        if row.refused is not None:
            measured.append(row)
            continue
        speedup = result.speedup(row.name, _FLOAT, shape)
        measured.append(TuningCandidate(row.name, row.recipe, medians[row.name], speedup, cosines[row.name]))
    chosen = choose(measured[1:], min_cosine)
    why = f"the fastest of {len(files)} at {shape} with {threads} threads that reaches a cosine of {min_cosine:g}"
    return TuningResult(tuple(measured), chosen.name, why, shape, threads, min_cosine, result.machine)


def choose(rows: Sequence[TuningCandidate], min_cosine: float) -> TuningCandidate:
    """Return the candidate with the largest speed-up among those that reach ``min_cosine``.

    Raises:
        VerificationError: If no candidate reaches it.
    """
    # The comparison is this way round so that a cosine of NaN does not pass.
    passing = [row for row in rows if row.cosine is not None and row.cosine >= min_cosine]
    if not passing:
        found = [
            f"{row.name}: {row.refused or 'its cosine to the float model is ' + format(row.cosine, '.4f')}"
            for row in rows
        ]
        raise VerificationError(describe_problems(f"no recipe reaches a cosine of {min_cosine:g}", found))
    return max(passing, key=lambda row: row.speedup or 0.0)


def text_vectors(output: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Make one vector per text from an output of a file.

    Case 1: ``(batch, seq, width)`` becomes the mean over the visible tokens.
    Case 2: ``(batch, seq)`` keeps the scores of the visible tokens.
    Case 3: Anything else is flattened, ``(batch, ...)``.

    Args:
        output: Output of a file.
        mask: Attention mask ``(batch, seq)``.

    Returns:
        An array ``(batch, width)``.
    """
    if output.shape[:2] == mask.shape and output.ndim == 3:  # case 1
        weights = (mask != 0)[..., np.newaxis]
        pooled: np.ndarray = (output * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1)
        return pooled
    if output.shape == mask.shape:  # case 2
        return np.where(mask != 0, output, 0.0)
    return output.reshape(len(output), -1)  # case 3


def _candidates(checkpoint: str | Path | ModelDirectory, recipe: str | None) -> list[tuple[str, str | None]]:
    """Return the name and the recipe of every candidate, without presets that equal the first one."""
    from qdq.checkpoint import load

    model = load(checkpoint)
    if recipe is not None:
        apply_recipe(model, load_recipe(recipe))
    own = {slot: quantizer.spec for slot, quantizer in named_slots(model)}
    if not own:
        raise ExportError(f"{checkpoint} is not quantized: calibrate it first (qdq calibrate)")
    first: tuple[str, str | None] = (_OWN, None) if recipe is None else (Path(recipe).stem, recipe)
    others = [name for name in PRESETS if load_recipe(name).assign(own) != own]
    return [first, *((name, name) for name in others)]


def _cosines(
    checkpoint: str | Path | ModelDirectory,
    float_file: Path,
    files: Mapping[str, Path],
    interface: ExportInterface | None,
) -> dict[str, float]:
    """Return the cosine of every file to the float file, for the first output, on text that ships with the package."""
    from exporters.export_model import wrap_for_export
    from exporters.verification.inputs import verification_batches
    from qdq.checkpoint import load
    from qdq.quantization.quantizer import Mode, set_mode

    model = load(checkpoint)
    set_mode(model, Mode.OFF)
    batches = [
        {name: tensor.numpy() for name, tensor in batch.items()}
        for batch in verification_batches(checkpoint, wrap_for_export(model, interface))
    ]

    def vectors(path: Path) -> list[np.ndarray]:
        runner = OnnxRuntimeRunner(path)
        return [text_vectors(next(iter(runner(batch).values())), batch["attention_mask"]) for batch in batches]

    expected = vectors(float_file)
    found = {}
    for name, path in files.items():
        pairs = list(zip(expected, vectors(path), strict=True))
        weights = [len(reference) for reference, _ in pairs]
        found[name] = float(np.average([cosine(*pair) for pair in pairs], weights=weights))
    return found
