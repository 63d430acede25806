"""Which form of an int8 file is fastest on the machine at hand, among those that are close enough to the float model.

With ranges that are known beforehand nothing but the products is computed; with ranges of each call every tensor is
looked at first, and fewer values are cut. Which is faster is decided by the CPU and by the shape, so it is measured.
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

    from exporters.interface import Form
    from qdq.source import ModelDirectory

__all__ = ["MIN_COSINE", "Tuned", "Tuning", "choose", "text_vectors", "tune"]

MIN_COSINE = 0.99
"""Of the vectors of texts to the float model's: what a form has to hold unless another value is asked for."""

PRESETS = ("onnxruntime", "dynamic")
"""What is tried besides the checkpoint's own recipe: ranges known beforehand, ranges of each call."""

_FLOAT = "float"
_OWN = "as calibrated"


@dataclass(frozen=True)
class Tuned:
    """One form that was tried.

    Args:
        name: of the recipe; ``float`` for the float file, ``as calibrated`` for the checkpoint's own.
        recipe: to export with; None for those two.
        median_s: seconds of a run, None when it was not run.
        speedup: over the float file, the median over the rounds.
        cosine: of the vectors of texts to the float file's.
        refused: why it could not be exported.
    """

    name: str
    recipe: str | None = None
    median_s: float | None = None
    speedup: float | None = None
    cosine: float | None = None
    refused: str | None = None


@dataclass(frozen=True)
class Tuning:
    """The report of :func:`tune`.

    Args:
        rows: the float file, then all forms.
        chosen: the name of the fastest one that holds ``min_cosine``.
        why: that choice in words.
    """

    rows: tuple[Tuned, ...]
    chosen: str
    why: str
    shape: Shape
    threads: int
    min_cosine: float
    machine: Machine

    @property
    def recipe(self) -> str | None:
        """To export with; None for the checkpoint's own."""
        return next(row.recipe for row in self.rows if row.name == self.chosen)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
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
    form: Form | None = None,
    isa: str = "any",
    progress: Callable[[str], None] | None = None,
) -> Tuning:
    """Export every form for ONNX Runtime into a temporary folder, compare them with the float file, and time them.

    Args:
        checkpoint: directory of a quantized checkpoint.
        shape: that is timed, 8 x 128 when None.
        min_cosine: what a form has to hold, -1 to 1.
        threads: of the runtime.
        rounds: interleaved, each in fresh processes.
        recipe: preset or file to try instead of the checkpoint's own recipe.
        opset: as for :func:`exporters.directory.export`.
        form: likewise.
        isa: likewise.
        progress: told what is done now.

    Raises:
        CheckpointError: for a checkpoint that cannot be read.
        ConfigError: for a cosine that none can be.
        VerificationError: when no form holds ``min_cosine``; each is named with its cosine.
    """
    if not -1 <= min_cosine <= 1:
        raise ConfigError(f"the least cosine is {min_cosine:g}, must be from -1 to 1")
    shape = shape or Shape(8, 128)
    tell: Callable[[str], None] = progress or (lambda _: None)
    with TemporaryDirectory(prefix="qdq-tune-") as name:
        folder = Path(name)
        tell("exporting the float model")
        export(checkpoint, folder / _FLOAT, target=None, opset=opset, form=form)
        rows = []
        for label, wanted in _wanted(checkpoint, recipe):
            tell(f"exporting {label}")
            try:
                export(checkpoint, folder / label, target="onnxruntime", recipe=wanted, opset=opset, form=form, isa=isa)
                rows.append(Tuned(label, wanted))
            except (ExportError, CalibrationError) as error:
                rows.append(Tuned(label, wanted, refused=" ".join(str(error).split())))
        files = {row.name: folder / row.name / MODEL_FILE for row in rows if row.refused is None}
        tell("comparing with the float model")
        cosines = _cosines(checkpoint, folder / _FLOAT / MODEL_FILE, files, form)
        candidates = [Candidate(_FLOAT, folder / _FLOAT / MODEL_FILE), *(Candidate(*item) for item in files.items())]
        result = benchmark(
            candidates,
            [shape],
            threads=threads,
            rounds=rounds,
            progress=lambda done, total, name: tell(f"timing {name} ({done}/{total})"),
        )
    medians = {timing.name: timing.median_s for timing in result.timings}
    measured = [Tuned(_FLOAT, None, medians[_FLOAT], 1.0, 1.0)]
    for row in rows:
        if row.refused is not None:
            measured.append(row)
            continue
        speedup = result.speedup(row.name, _FLOAT, shape)
        measured.append(Tuned(row.name, row.recipe, medians[row.name], speedup, cosines[row.name]))
    chosen = choose(measured[1:], min_cosine)
    why = f"the fastest of {len(files)} at {shape} with {threads} threads that holds a cosine of {min_cosine:g}"
    return Tuning(tuple(measured), chosen.name, why, shape, threads, min_cosine, result.machine)


def choose(rows: Sequence[Tuned], min_cosine: float) -> Tuned:
    """The form of the largest speed-up among those that hold ``min_cosine``.

    Raises:
        VerificationError: when there is none.
    """
    # Written so that NaN does not hold.
    holding = [row for row in rows if row.cosine is not None and row.cosine >= min_cosine]
    if not holding:
        found = [
            f"{row.name}: {row.refused or 'its cosine to the float model is ' + format(row.cosine, '.4f')}"
            for row in rows
        ]
        raise VerificationError(describe_problems(f"no form holds a cosine of {min_cosine:g}", found))
    return max(holding, key=lambda row: row.speedup or 0.0)


def text_vectors(output: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """A vector for each text from an output of a file.

    1. ``(batch, seq, width)``: the mean over the visible tokens. 2. ``(batch, seq)``: the scores of the visible tokens.
    3. Anything else: as it is, ``(batch, ...)`` flattened.
    """
    if output.shape[:2] == mask.shape and output.ndim == 3:
        weights = (mask != 0)[..., np.newaxis]
        pooled: np.ndarray = (output * weights).sum(axis=1) / np.maximum(weights.sum(axis=1), 1)
        return pooled
    if output.shape == mask.shape:
        return np.where(mask != 0, output, 0.0)
    return output.reshape(len(output), -1)


def _wanted(checkpoint: str | Path | ModelDirectory, recipe: str | None) -> list[tuple[str, str | None]]:
    """Name and recipe of every form; presets that would be the same as the first are left out."""
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
    checkpoint: str | Path | ModelDirectory, in_float: Path, files: Mapping[str, Path], form: Form | None
) -> dict[str, float]:
    """Of the first output of every file to that of the float file, on text that ships with the package."""
    from exporters.export_model import deploy
    from exporters.verification.inputs import verification_batches
    from qdq.checkpoint import load
    from qdq.quantization.quantizer import Mode, set_mode

    model = load(checkpoint)
    set_mode(model, Mode.OFF)
    batches = [
        {name: tensor.numpy() for name, tensor in batch.items()}
        for batch in verification_batches(checkpoint, deploy(model, form))
    ]

    def vectors(path: Path) -> list[np.ndarray]:
        runner = OnnxRuntimeRunner(path)
        return [text_vectors(next(iter(runner(batch).values())), batch["attention_mask"]) for batch in batches]

    expected = vectors(in_float)
    found = {}
    for name, path in files.items():
        pairs = list(zip(expected, vectors(path), strict=True))
        weights = [len(reference) for reference, _ in pairs]
        found[name] = float(np.average([cosine(*pair) for pair in pairs], weights=weights))
    return found
