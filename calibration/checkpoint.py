"""Calibrate a checkpoint: from a float model in a directory and sample text to a quantized checkpoint."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass, replace
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calibration.choices import each_alone, read_choices
from calibration.digests import text_digest
from calibration.distributed import torchrun_process
from calibration.methods import adjustments as adjust
from calibration.methods.auto import method_named
from calibration.pipeline import calibrate_and_refine
from calibration.resume_file import ResumeFile
from calibration.settings import CalibrationSettings, RangeAdjustments
from calibration.statistics.statistics_file import SavedStatistics
from qdq import checkpoint
from qdq.data.source import draw
from qdq.data.text import TextSample, encode_batches, read_samples
from qdq.errors import CalibrationError, CheckpointError, ConfigError, DataError, QDQError, StorageError
from qdq.processes import terminated_as_interrupted
from qdq.quantization.quantizer import Mode, set_mode
from qdq.quantization.wrap import named_slots
from qdq.recipes.apply import quantize
from qdq.recipes.plan import needing_data, plan, skeleton
from qdq.recipes.recipe import load_recipe, presets
from qdq.sentence.prompts import with_prompt
from qdq.source import ModelDirectory
from qdq.storage import atomic_directory, check_replaceable_file

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence

    from torch import Tensor

    from calibration.distributed import ProcessRank
    from calibration.methods.method import Method
    from qdq.data.tokenizer import TextEncoder
    from qdq.models.model import Model
    from qdq.quantization.slot import Slot
    from qdq.recipes.plan import Plan
    from qdq.recipes.recipe import Recipe

    Progress = Callable[[str, int, int], object]
    Say = Callable[[str], object]

__all__ = ["CalibratedCheckpoint", "calibrate_checkpoint", "resume_folder"]

# What the record of a calibration without data holds instead of figures.
_NO_DATA = {"method": {"name": "none"}, "batches": 0, "samples": 0, "tokens": 0, "data_sha256": None, "seq_len": None}

_STAGES = {"channels": "measuring channels", "ranges": "calibrating", "layers": "refining layers"}


@dataclass(frozen=True)
class CalibratedCheckpoint:
    """The result of :func:`calibrate_checkpoint`.

    Args:
        path: Directory of the checkpoint.
        recipe: Name of the recipe.
        slots: Number of slots of the model.
        quantized: Number of slots that are quantized.
        calibration: How the ranges were found, as ``quantization.json`` records it.
    """

    path: Path
    recipe: str
    slots: int
    quantized: int
    calibration: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "recipe": self.recipe,
            "slots": {"total": self.slots, "quantized": self.quantized},
            "calibration": dict(self.calibration),
        }


def calibrate_checkpoint(
    model: str | Path | ModelDirectory,
    output: str | Path,
    data: str | Path | Iterable[str | TextSample] | None = None,
    *,
    recipe: Recipe | str = "onnxruntime",
    settings: CalibrationSettings | None = None,
    adjustments: RangeAdjustments | None = None,
    task: str | None = None,
    allow_missing: Collection[str] = (),
    text_column: str | None = None,
    text_pair_column: str | None = None,
    resume: bool | None = None,
    add_statistics: Sequence[Path] = (),
    save_statistics: Path | None = None,
    progress: Progress | None = None,
    say: Say | None = None,
) -> CalibratedCheckpoint:
    """Find the ranges of a float checkpoint on sample text and write a quantized checkpoint.

    Everything that is cheap to refuse is refused before the weights are loaded. The output appears whole or not at
    all. Under torchrun the processes share the batches; all of them get the same result, and the first one writes it.

    Args:
        model: Directory of the float model. A handle brings its settings of loading.
        output: Directory to write.
        data: Sample text, see :func:`qdq.read_samples`. None for recipes without static activations.
        recipe: A recipe, the name of a preset, or a YAML file.
        settings: How ranges are found. None takes the defaults of :class:`CalibrationSettings`.
        adjustments: How ranges are changed afterwards. None leaves them alone.
        task: Task whose head is loaded. None takes the one that config.json names.
        allow_missing: ``{"head"}`` or ``{"pooler"}`` to begin with new ones if the checkpoint has none.
        text_column: Column or key of the text in ``data``; by default the usual names are tried.
        text_pair_column: Column or key of the second text.
        resume: Whether to continue an interrupted calibration. False begins anew and keeps a resume file beside the
            output in case this one is interrupted; None keeps nothing.
        add_statistics: Statistics that other processes collected on other data, to be included.
        save_statistics: File to save the collected statistics to.
        progress: Called with the stage in words, batches or layers done, and their number.
        say: Called with a sentence about what happened.

    Returns:
        What was written, and how the ranges were found.

    Raises:
        CalibrationError: Settings, statistics or activations that give no range.
        CheckpointError: The model is damaged or has no tokenizer.
        ConfigError: The configuration is not supported, or something that is not ours is in the way of the output or
            of the statistics.
        DataError: The data cannot be read, or is missing although the recipe needs some.
        KeyboardInterrupt: It was interrupted; the message says what is kept.
        RecipeError: The recipe does not fit the model.
        StorageError: The disk is full, or the like.
    """
    settings, adjustments = settings or CalibrationSettings(), adjustments or RangeAdjustments()
    progress, say = progress or _silent, say or _silent
    directory, output = ModelDirectory.of(model), Path(output)
    if directory.is_export:
        raise CheckpointError(f"{directory} is an exported directory, which cannot be calibrated: give its checkpoint")
    if save_statistics is not None:
        inputs = [*add_statistics, *([data] if isinstance(data, str | Path) else [])]
        _check_statistics_path(save_statistics, output, [Path(path) for path in inputs])
    method = _method(settings)
    outline = skeleton(directory.config, task, with_pooler=directory.has_pooler or "pooler" in allow_missing)
    planned = plan(outline, load_recipe(recipe) if isinstance(recipe, str) else recipe)
    if (add_statistics or save_statistics) and planned.recipe.refinement.has_transforms:
        raise CalibrationError(
            "smoothing and shift depend on the data of each run, so that its statistics cannot be shared: give "
            "--smoothing off --no-shift with --add-statistics and --save-statistics"
        )
    texts: list[TextSample] = []
    tokenizer = None
    if data is None:
        resume = None
        _check_needs_no_data(planned, say)
    else:
        tokenizer = directory.encoder
        read = read_choices if (task or directory.task) == "multiple-choice" else read_samples
        samples = read(data, text_column=text_column, text_pair_column=text_pair_column)
        texts = draw(samples, settings.num_samples, settings.seed)
        if directory.sentence.modules is not None and task in (None, "feature-extraction"):
            texts, settings = _prepared(directory, texts, settings, say)
    statistics = [SavedStatistics.load(path) for path in add_statistics] if tokenizer is not None else []
    with (
        torchrun_process() as process,
        _resume_file(
            output, _identity(planned, texts, method, settings), process, resume=resume, say=say
        ) as resume_file,
        _written_by_first(process.rank, output) as folder,
    ):
        wrapped = checkpoint.load_float(directory, task, allow_missing=allow_missing, seed=settings.seed)
        quantize(wrapped, planned.recipe)
        changes: list[dict[str, Any]] = []
        if tokenizer is not None:
            record = _find_ranges(
                wrapped,
                texts,
                tokenizer,
                planned.recipe,
                settings,
                method=method,
                process=process,
                adjust=lambda: changes.extend(_adjust(wrapped, adjustments, say)),
                resume_file=resume_file,
                statistics=statistics,
                save_statistics=save_statistics,
                progress=progress,
            )
        else:
            set_mode(wrapped, Mode.QUANTIZE)
            changes.extend(_adjust(wrapped, adjustments, say))
            record = {**_NO_DATA, "seed": settings.seed}
        for warning in record.get("warnings", ()):
            say(f"warning: {warning}")
        if changes:
            record["adjustments"] = changes
        if folder is not None:
            checkpoint.write(wrapped, folder, recipe=planned.recipe, calibration=record, source=directory)
    specs = [quantizer.spec for _, quantizer in named_slots(wrapped)]
    quantized = sum(spec is not None for spec in specs)
    return CalibratedCheckpoint(output, planned.recipe.name, len(specs), quantized, record)


def resume_folder(output: Path) -> Path:
    """Return the folder of the resume file that an interrupted calibration leaves beside its output."""
    output = output.absolute()
    return output.with_name(f"{output.name}.calibration")


def _silent(*_: object) -> None:
    """Say nothing."""


def _prepared(
    directory: ModelDirectory, texts: Sequence[TextSample], settings: CalibrationSettings, say: Say
) -> tuple[list[TextSample], CalibrationSettings]:
    """Prepare texts as sentence-transformers does: with the default prompt in front, and not longer than it reads."""
    if prompt := directory.sentence.default_prompt:
        say(f"the default prompt of the model is put in front of every text: {prompt!r}")
    seq_len = min(settings.seq_len, directory.max_length)
    return list(with_prompt(texts, prompt)), replace(settings, seq_len=seq_len)


def _method(settings: CalibrationSettings) -> Method:
    if settings.percentile is None:
        return method_named(settings.calibrator)
    return method_named(settings.calibrator, percentile=settings.percentile)


def _identity(
    planned: Plan, texts: Sequence[TextSample], method: Method, settings: CalibrationSettings
) -> dict[str, str]:
    """Describe what an interrupted calibration must have in common with the one that continues it."""
    return {
        "recipe": f"{planned.recipe.name} {text_digest([planned.recipe.to_dict()])}",
        "data": f"{len(texts)} samples {text_digest(texts)}",
        "method": dumps(method.to_dict()),
        "seed": str(settings.seed),
        "seq_len": str(settings.seq_len),
        "batch_size": str(settings.batch_size),
    }


def _check_needs_no_data(planned: Plan, say: Say) -> None:
    recipe = planned.recipe
    if waiting := planned.needing_data:
        free = [name for name in presets() if not needing_data(load_recipe(name).assign(planned.specs))]
        raise DataError(
            f"recipe {recipe.name!r} needs sample text for the ranges of {len(waiting)} slots ({waiting[0]}, ...): "
            f"give --calib-data FILE, or a recipe that needs none: {', '.join(free)}"
        )
    say(f"recipe {recipe.name} needs no calibration data")
    if recipe.refinement:
        settings = ", ".join(recipe.refinement.to_dict())
        say(f"warning: without sample text (--calib-data) these settings of the recipe have no effect: {settings}")


def _find_ranges(
    model: Model,
    texts: Sequence[TextSample],
    tokenizer: TextEncoder,
    recipe: Recipe,
    settings: CalibrationSettings,
    *,
    method: Method,
    process: ProcessRank,
    adjust: Callable[[], object],
    resume_file: ResumeFile | None,
    statistics: Sequence[SavedStatistics],
    save_statistics: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """Calibrate the wrapped model in place and return the record of it."""
    seq_len = min(settings.seq_len, model.config.max_length)
    count = -(-len(texts) // settings.batch_size)

    def batches() -> Iterator[Mapping[str, Tensor]]:
        encoded = encode_batches(
            texts,
            tokenizer,
            batch_size=settings.batch_size,
            seq_len=seq_len,
            pad_token_id=model.config.pad_token_id or 0,
        )
        return each_alone(encoded) if model.task == "multiple-choice" else iter(encoded)

    def stage(name: str) -> Callable[..., object]:
        # Only the layer-wise stage knows how many steps it has; the others take a step per batch.
        return lambda done, total=count: progress(_STAGES[name], done, total)

    progress(_STAGES["ranges"], 0, count)
    summary = calibrate_and_refine(
        model,
        batches,
        recipe.refinement,
        method=method,
        process=process,
        adjust=adjust,
        resume_file=resume_file,
        stage=stage,
        statistics=statistics,
        save_statistics=save_statistics,
    )
    return {**summary.to_dict(), "seq_len": seq_len, "seed": settings.seed}


def _adjust(model: Model, adjustments: RangeAdjustments, say: Say) -> list[dict[str, Any]]:
    """Change ranges as asked and return the record of the changes."""
    done: list[tuple[dict[str, Any], list[Slot]]] = []
    if adjustments.recalibrate_weights:
        done.append(({"name": "recalibrate-weights"}, adjust.recalibrate_weights(model)))
    if adjustments.fuse_qkv:
        done.append(({"name": "fuse-qkv"}, adjust.fuse_qkv(model)))
    if adjustments.clip_gelu is not None:
        bound = adjustments.clip_gelu
        done.append(({"name": "clip-gelu", "bound": bound}, adjust.clip_gelu(model, bound)))
    specs = {slot: quantizer.spec for slot, quantizer in named_slots(model)}
    record = []
    for what, changed in done:
        count = sum(spec is not None and not spec.dynamic for spec in map(specs.__getitem__, changed))
        record.append({**what, "slots": count})
        if not count:
            say(f"--{what['name']} had no effect: no slot that it changes has a static range in this recipe")
    return record


@contextmanager
def _written_by_first(rank: int, output: Path) -> Iterator[Path | None]:
    """Yield the folder to write into for the first process, and None for the others."""
    if rank:
        yield None
        return
    with atomic_directory(output, kind="checkpoint") as folder:  # a checkpoint may calibrate itself anew
        yield folder


def _check_statistics_path(path: Path, output: Path, inputs: Sequence[Path]) -> None:
    """Raise if statistics cannot be written to ``path``, before the work."""
    check_replaceable_file(path, "statistics", inputs=inputs)
    if path.resolve().is_relative_to(output.resolve()):
        raise ConfigError(
            f"{path}: lies in the output {output}, which is replaced as a whole; save the statistics elsewhere"
        )


@contextmanager
def _resume_file(
    output: Path, identity: Mapping[str, str], process: ProcessRank, *, resume: bool | None, say: Say
) -> Iterator[ResumeFile | None]:
    """Yield a resume file beside ``output``; None if ``resume`` is None.

    The file is removed at the end of the block. An interrupt, SIGTERM too, and a full disk leave it there, and the
    message of the exception says so.
    """
    if resume is None:
        yield None
        return
    resume_file = ResumeFile(resume_folder(output), identity, resume=resume, process=process, notify=say)
    if resume and resume_file.is_empty:
        say(f"nothing to resume in {resume_file.folder}: the calibration starts from the beginning")
    elif not resume and not resume_file.is_empty:
        left = resume_file.describe_progress() or "damaged"
        say(
            f"warning: {resume_file.folder}: an interrupted calibration ({left}) starts from the beginning; --resume "
            "would continue it",
        )
    try:
        with terminated_as_interrupted():
            yield resume_file
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted; {_kept(resume_file) or 'nothing was changed'}") from None
    except StorageError as error:
        if kept := _kept(resume_file):
            error.args = (f"{error}; {kept}",)
        raise
    except QDQError:
        if resume_file.is_begun and process.world_size == 1:  # the same error would come again
            resume_file.remove()
        raise
    if process.rank == 0:
        resume_file.remove()


def _kept(resume_file: ResumeFile) -> str | None:
    left = resume_file.describe_progress()
    return left and f"{resume_file.folder} keeps what was collected ({left}): the same command with --resume goes on"
