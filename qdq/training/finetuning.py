"""Train a checkpoint: from its directory and labeled data to the directory of the best trained checkpoint."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.data.examples import read_examples
from qdq.errors import ConfigError, TrainingError, describe_problems
from qdq.source import ModelDirectory
from qdq.training.accelerator import open_accelerator
from qdq.training.checkpoint_writer import CheckpointWriter, check_output
from qdq.training.distillation import DistillationLoss, teacher_problems
from qdq.training.embedding_loss import sts_loss
from qdq.training.epoch_loader import EpochLoader
from qdq.training.initial_calibration import calibrate_on_training_data, read_calibration
from qdq.training.initial_model import choose_initial_model, load_for_task
from qdq.training.loop import finetune
from qdq.training.loss import model_loss
from qdq.training.progress import TrainingProgress
from qdq.training.quantization import ready_for_training, update_ranges
from qdq.training.random_state import seed_generators
from qdq.training.request import FinetuneRequest
from qdq.training.resume_file import ResumeFile
from qdq.training.sentence_vectors import SentenceVectors, notes_on_training, prepare_pairs, vector_width
from qdq.training.settings import QAT_LR, Distillation, InitialCalibration, TaskSettings, TrainingSettings
from qdq.training.task_metrics import TaskMetrics
from qdq.training.training_log import TrainingLog

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

    from qdq.data.columns import Columns
    from qdq.data.example_types import Example
    from qdq.models.model import Model
    from qdq.recipes.recipe import Recipe
    from qdq.training.accelerator import TrainingAccelerator
    from qdq.training.initial_model import InitialModel
    from qdq.training.loss import Loss
    from qdq.training.progress import TrainingResult

__all__ = ["finetune_checkpoint"]

_LOG = logging.getLogger(__name__)
_LONG_EPOCH = 40  # steps


def finetune_checkpoint(
    model: str | Path | ModelDirectory,
    output: str | Path,
    train_data: Any,
    *,
    eval_data: Any = None,
    task: TaskSettings | None = None,
    settings: TrainingSettings | None = None,
    columns: Columns | None = None,
    recipe: Recipe | None = None,
    calibration: InitialCalibration | None = None,
    teacher: str | Path | ModelDirectory | None = None,
    distillation: Distillation | None = None,
    tensorboard: str | Path | None = None,
    resume: bool = False,
    say: Callable[[str], None] = print,
    progress: Callable[[int, int, str], None] | None = None,
) -> dict[str, Any]:
    """Train a checkpoint on labeled data and write the best one, as ``qdq finetune`` does.

    Nothing is written before data, models and output are checked. The resume file lies in ``<output>.training`` until
    the training is finished, the log then in ``<output>.training.csv``.

    Args:
        model: Directory of the checkpoint, float or quantized.
        output: Directory to write the best checkpoint to.
        train_data: Labeled examples, see :func:`qdq.data.examples.read_examples`.
        eval_data: Labeled examples to evaluate on. Without them the last step gives the checkpoint, with a warning also
            where the metric is undefined on them.
        task: The task and its head, batches, and the metric that decides.
        settings: How to train. A quantized model has the learning rate 5e-6 if none is set, and is evaluated four times
            in a long epoch if ``eval_steps`` is not set.
        columns: Names of the columns where they are not the usual ones.
        recipe: Recipe to quantize a float model with before training.
        calibration: How the model is calibrated for ``recipe``, on training data.
        teacher: Directory of a float model to learn from.
        distillation: Weights of the labels and of the teacher in the loss.
        tensorboard: Folder for TensorBoard's files; None writes none.
        resume: Whether to go on from the resume file, if there is one.
        say: Called with lines for people.
        progress: Called with the steps done, all steps, and a text about loss and metric.

    Returns:
        What ``qdq finetune --json`` prints: checkpoint, steps, metrics and their history.

    Raises:
        ConfigError: If settings, model, teacher and output do not fit each other.
        DataError: If the data does not fit the task.
        QDQError: As :func:`qdq.training.loop.finetune` and the readers of data and models raise it.
    """
    directory = ModelDirectory.of(model)
    settings = settings or TrainingSettings()
    if settings.lr is None and (recipe is not None or directory.is_quantized):
        settings = replace(settings, lr=QAT_LR)
    request = FinetuneRequest(
        model=directory,
        output=Path(output),
        train_data=train_data,
        eval_data=eval_data,
        task=task or TaskSettings(),
        settings=settings,
        columns=columns,
        recipe=recipe,
        calibration=calibration or InitialCalibration(),
        teacher=None if teacher is None else ModelDirectory.of(teacher),
        distillation=distillation or Distillation(),
        tensorboard=None if tensorboard is None else Path(tensorboard),
        resume=resume,
        say=say,
        progress=progress,
    )
    initial = choose_initial_model(directory, train_data, request.task, columns=columns)
    _check_request(request, initial)
    metrics = _task_metrics(request, initial)
    log = TrainingLog(request.tensorboard)
    check_output(request)
    examples, skipped = _read_training_data(request, initial)
    with open_accelerator(settings) as accelerator:
        if skipped and accelerator.is_main_process:
            request.say(f"{skipped} rows without label are left out")
        if initial.task == "sts" and accelerator.is_main_process:
            for note in notes_on_training(directory):
                request.say(note)
        loader = EpochLoader(
            examples,
            directory.encoder,
            initial.task,
            batch_size=request.task.batch_size * accelerator.num_processes,
            seq_len=_seq_len(request, initial),
            seed=settings.seed,
        )
        return _train(request, initial, loader, metrics, log, accelerator)


def _check_request(request: FinetuneRequest, initial: InitialModel) -> None:
    """Raise if model, recipe and teacher do not fit each other, before weights are read."""
    problems = []
    if initial.is_quantized and request.recipe is not None:
        problems.append(f"{request.model} is quantized already: leave out the recipe, or give the float model")
    problems += _settings_without_effect(request, is_quantized=initial.is_quantized or request.recipe is not None)
    if request.teacher is not None:
        found = _teacher_problems(request, initial)
        problems += [f"the teacher {request.teacher}: {problem}" for problem in found]
    if problems:
        raise ConfigError(describe_problems("training", problems))


def _settings_without_effect(request: FinetuneRequest, *, is_quantized: bool) -> list[str]:
    """Return a line for settings that are not the default ones although nothing would read them."""
    problems = []
    if request.teacher is None and request.distillation != Distillation():
        problems.append(
            "the weights of the loss and the temperature are for learning from a teacher, and none is given"
        )
    if request.recipe is None and request.calibration != InitialCalibration():
        problems.append("calibration-samples and refine are for a model that a recipe quantizes, and none is given")
    if request.eval_data is None and (request.settings.eval_steps or request.task.eval_split):
        problems.append("eval-steps and eval-split are for data to evaluate on, and none is given")
    names = ("ranges", "scale_lr", "freeze_ranges", "activations_from", "weights_from", "momentum")
    given = {name: getattr(request.settings, name) for name in names}
    changed = [name.replace("_", "-") for name, value in given.items() if value != getattr(TrainingSettings, name)]
    if changed and not is_quantized:
        problems.append(f"{', '.join(changed)}: for a model that quantizes; give a quantized checkpoint or a recipe")
    return problems


def _teacher_problems(request: FinetuneRequest, initial: InitialModel) -> list[str]:
    teacher, model = request.teacher, request.model
    assert teacher is not None
    embeds = initial.task == "sts"
    problems = teacher_problems(initial.config, teacher.config, request.distillation, embeds=embeds)
    if embeds and (pooling := teacher.sentence.pooling) != (own := model.sentence.pooling):
        problems.append(f"its pooling is {pooling}, the model's {own}")
    if embeds and request.distillation.logits and not problems:
        widths = vector_width(teacher), vector_width(model)
        if widths[0] != widths[1]:
            problems.append(f"its vectors have {widths[0]} numbers, the model's {widths[1]}")
    if not problems and teacher.tokenizer.get_vocab() != model.tokenizer.get_vocab():
        problems.append("its tokenizer has another vocabulary")
    return problems


def _task_metrics(request: FinetuneRequest, initial: InitialModel) -> TaskMetrics | None:
    """Return what measures the model, its data checked; None without data to evaluate on."""
    if request.eval_data is None:
        if request.task.metric is not None:
            raise ConfigError(f"the metric {request.task.metric} needs data to evaluate on")
        return None
    metrics = TaskMetrics(
        initial=initial,
        data=request.eval_data,
        settings=request.task,
        columns=request.columns,
        seed=request.settings.seed,
    )
    metrics.check_data()
    return metrics


def _read_training_data(request: FinetuneRequest, initial: InitialModel) -> tuple[list[Example], int]:
    """Return the examples and the number of rows without label, which are left out."""
    examples = read_examples(
        request.train_data,
        initial.task,
        columns=request.columns,
        labels=initial.labels,
        need_labels=initial.task != "masked-lm",
        split=request.task.split,
    )
    found = list(examples)
    return (prepare_pairs(found, request.model) if initial.task == "sts" else found), examples.skipped


def _seq_len(request: FinetuneRequest, initial: InitialModel) -> int | None:
    """Return the longest row in tokens: for vectors of texts, what the files of sentence-transformers say."""
    if request.task.seq_len is not None or initial.task != "sts":
        return request.task.seq_len
    return request.model.max_length


def _train(
    request: FinetuneRequest,
    initial: InitialModel,
    loader: EpochLoader,
    metrics: TaskMetrics | None,
    log: TrainingLog,
    accelerator: TrainingAccelerator,
) -> dict[str, Any]:
    say = request.say if accelerator.is_main_process else _say_nothing
    process_seed = request.settings.seed + accelerator.process_index
    seed_generators(process_seed)
    model = initial.load(seed=request.settings.seed)
    if initial.has_new_head:
        names = "" if initial.labels is None else f" for {', '.join(initial.labels.names[:10])}"
        say(f"a new head{names}")
    if metrics is not None and request.task.metric is not None:
        # Only an evaluation shows whether the task has the metric: do one now, not after the first epoch.
        metrics(model.to(accelerator.device).eval())
        model.cpu()
    recipe, calibration = _quantize(request, initial, model, loader, say)
    if recipe is not None:
        for note in ready_for_training(model, learned=request.settings.ranges == "learned"):
            say(note)
    loss = _make_loss(request, initial, accelerator)
    # Calibration and teacher drew random numbers; a resumed training has to begin with the same ones.
    seed_generators(process_seed)
    writer = CheckpointWriter(request, initial.task, recipe=recipe, calibration=calibration)
    try:
        result = finetune(
            model,
            loader,
            loss=loss,
            evaluate=metrics,
            better="higher" if metrics is None else metrics.better,
            settings=_with_eval_steps(request, loader) if recipe is not None else request.settings,
            resume_folder=request.resume_folder,
            identity=_identity(request, initial, loader, model, metrics),
            resume=request.resume,
            keep_best=False,  # the best checkpoint is on disk
            on_best=writer.write,
            # No step may improve a calibrated model: then the checkpoint is the model as it was calibrated.
            evaluate_first=recipe is not None and not initial.has_new_head,
            log=log,
            progress=request.progress,
            accelerator=accelerator.plain,
        )
    except TrainingError as error:
        if writer.has_written:
            error.args = (f"{error}. The last good checkpoint is {request.output}",)
        raise
    if accelerator.is_main_process:
        _write_result(request, writer, model, result, has_metrics=metrics is not None)
    accelerator.wait_for_everyone()
    return {"checkpoint": str(request.output), "quantized": recipe is not None, **writer.to_dict(result)}


def _quantize(
    request: FinetuneRequest, initial: InitialModel, model: Model, loader: EpochLoader, say: Callable[[str], None]
) -> tuple[Recipe | None, dict[str, Any]]:
    """Quantize the model if that is asked for; return its recipe and calibration, or None and {} for a float model."""
    if initial.is_quantized:
        return read_calibration(request.model)
    if request.recipe is None:
        return None, {}
    return calibrate_on_training_data(model, request.recipe, loader, request.calibration, say=say)


def _make_loss(request: FinetuneRequest, initial: InitialModel, accelerator: TrainingAccelerator) -> Loss:
    device = accelerator.device
    of = {"seq_len": _seq_len(request, initial) or request.model.max_length, "device": device}
    vectors = SentenceVectors.of(request.model, **of) if initial.task == "sts" else None
    if request.teacher is None:
        return model_loss if vectors is None else partial(sts_loss, pooling=vectors)
    teacher = load_for_task(request.teacher, initial.task)
    theirs = None if vectors is None else SentenceVectors.of(request.teacher, **of)
    return DistillationLoss(teacher.to(device), request.distillation, pooling=vectors, teacher_pooling=theirs)


def _with_eval_steps(request: FinetuneRequest, loader: EpochLoader) -> TrainingSettings:
    """Return settings with four evaluations per epoch, where none are set and an epoch is long.

    In QAT the weights of a trained model hardly change, but they cross rounding borders back and forth: the metric
    varies from step to step, and more evaluations find a better checkpoint.
    """
    settings = request.settings
    per_epoch = -(-len(loader) // settings.accumulation)
    if settings.eval_steps is not None or request.eval_data is None or per_epoch < _LONG_EPOCH:
        return settings
    return replace(settings, eval_steps=-(-per_epoch // 4))


def _write_result(
    request: FinetuneRequest, writer: CheckpointWriter, model: Model, result: TrainingResult, *, has_metrics: bool
) -> None:
    """Write the log, and the checkpoint of the last step if there is none of a best one; remove the resume file."""
    if result.metric is None or not writer.holds(result.best_step):
        if has_metrics:
            found = "no evaluation gave a metric" if result.metric is None else f"step {result.best_step} is gone"
            _LOG.warning("%s: %s, so the checkpoint is that of the last step, %d", request.output, found, result.steps)
        update_ranges(model)
        writer.write(model, TrainingProgress(step=result.steps, history=result.history))
    writer.write_log(result)
    ResumeFile(request.resume_folder, {}).remove()


def _identity(
    request: FinetuneRequest,
    initial: InitialModel,
    loader: EpochLoader,
    model: nn.Module,
    metrics: TaskMetrics | None,
) -> dict[str, str]:
    """Return what has to be the same for a training to be resumed, besides its settings."""
    from calibration.digests import model_digest

    recipe = "none"
    if request.recipe is not None:
        recipe = hashlib.sha256(repr(request.recipe.to_dict()).encode()).hexdigest()[:16]
    teacher = "none" if request.teacher is None else f"{request.teacher} {asdict(request.distillation)}"
    return {
        "task": initial.task,
        "data": loader.digest(),
        "model": model_digest(model),
        "recipe": recipe,
        "teacher": teacher,
        "metric": str(request.task.metric),
        "evaluated": str(request.eval_data is not None),
        "evaluation data": "none" if metrics is None else metrics.digest,
    }


def _say_nothing(text: str) -> None:
    """Take the place of ``say`` in all processes but the first."""
