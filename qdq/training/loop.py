"""Train a model on the batches of any loader.

accelerate does devices, processes and precision: scripts that call :func:`finetune` work with ``accelerate launch`` and
``torchrun`` as they are.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError
from qdq.training.accelerator import open_accelerator
from qdq.training.components import make_components
from qdq.training.epochs import EpochLoop
from qdq.training.evaluation import Evaluator
from qdq.training.loss import model_loss
from qdq.training.process_batches import ProcessBatches, count_steps
from qdq.training.resume_file import ResumableTraining, ResumeFile
from qdq.training.settings import TrainingSettings
from qdq.training.step import TrainingStep
from qdq.training.training_log import TrainingLog

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from qdq.training.components import Components
    from qdq.training.evaluation import Evaluate
    from qdq.training.loss import Loss
    from qdq.training.process_batches import Loader
    from qdq.training.progress import TrainingProgress, TrainingResult

__all__ = ["finetune"]

#: Settings that may differ when a training is resumed: they do not change what a step does.
_FREE_SETTINGS = ("save_steps", "patience")


def finetune(
    model: nn.Module,
    loader: Loader,
    *,
    loss: Loss | None = None,
    evaluate: Evaluate | None = None,
    better: str = "higher",
    settings: TrainingSettings | None = None,
    resume_folder: str | Path | None = None,
    identity: Mapping[str, str] | None = None,
    resume: bool = False,
    keep_best: bool = True,
    on_best: Callable[[Any, TrainingProgress], None] | None = None,
    evaluate_first: bool = False,
    log: TrainingLog | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    accelerator: Any = None,
    **options: Any,
) -> TrainingResult:
    """Train a model in place: in float, or with fake quantization and straight-through gradients (QAT).

    Prepare a model that quantizes with :func:`qdq.training.quantization.ready_for_training` if its calibration refined
    it, or if its scales are to be trained.

    Args:
        model: Any module; its quantizers, if it has any, must be calibrated. It ends on the device that trained it, and
            quantizing.
        loader: A DataLoader, a list of batches, or a function from an epoch to its batches. A batch maps argument names
            to tensors whose first axis is the batch. With several processes, accelerate distributes the batches of a
            DataLoader; those of other loaders are split by rows.
        loss: Function of the model and a batch that returns the mean loss over the labels; None takes the loss that the
            model returns.
        evaluate: Function that measures a model, see :data:`qdq.training.evaluation.Evaluate`. It is called after every
            epoch, or after every ``eval_steps`` steps.
        better: Whether a ``higher`` or a ``lower`` first metric is better.
        settings: How to train; instead, its fields can be given by name.
        resume_folder: Folder of the resume file; None writes none.
        identity: What the resume file belongs to besides the settings, as text by name: model, data, ...
        resume: Whether to go on from the resume file, if there is one.
        keep_best: Whether to end with the weights of the best evaluation instead of the last ones.
        on_best: Called in the first process with the model and the progress, after an evaluation that is the best yet.
        evaluate_first: Whether the model before its first step counts as an evaluation.
        log: Log that takes losses, learning rates and metrics.
        progress: Called with the steps done, all steps, and a text about loss and metric.
        accelerator: An ``accelerate.Accelerator``; None makes one.
        **options: Fields of :class:`TrainingSettings`.

    Returns:
        Steps, metrics and log of the training.

    Raises:
        CalibrationError: If slots are not calibrated.
        ConfigError: If settings do not fit each other or the model.
        DataError: If there are no batches, or if they do not fit the model.
        TrainingError: If the loss is not finite, or if the resume file belongs to another training.
        MissingPackageError: If accelerate is not installed.
        StorageError: If the resume file cannot be written.
        KeyboardInterrupt: If Ctrl-C or SIGTERM came; the step was finished and the resume file written.
    """
    if settings is None:
        settings = TrainingSettings(**options)
    elif options:
        raise ConfigError(f"pass either settings or {', '.join(options)} by name, not both")
    if better not in {"higher", "lower"}:
        raise ConfigError(f"better is {better!r}, must be higher or lower")
    if settings.patience is not None and evaluate is None:
        raise ConfigError("patience counts evaluations: give labeled data (--eval-data), or in Python evaluate=")
    log = log or TrainingLog()
    with open_accelerator(settings, accelerator) as opened:
        batches = ProcessBatches(loader, opened)
        per_epoch, total = count_steps(batches.length, settings)
        is_own_loss = loss is not None and loss is not model_loss
        components = make_components(model, total, settings, opened, is_own_loss=is_own_loss)
        try:
            file = _resume_file(resume_folder, identity or {}, components, settings, total=total, resume=resume)
            evaluator = None
            if evaluate is not None:
                evaluator = Evaluator(
                    components,
                    evaluate,
                    better=better,
                    patience=settings.patience,
                    keep_best=keep_best,
                    on_best=on_best,
                    log=log,
                )
            epochs = EpochLoop(
                components,
                batches,
                settings,
                per_epoch=per_epoch,
                total=total,
                step=TrainingStep(components, loss or model_loss, max_grad_norm=settings.max_grad_norm),
                evaluator=evaluator,
                resumable=None if file is None else ResumableTraining(file, components, log),
                log=log,
                report=progress,
            )
            return epochs.train(resume=resume, evaluate_first=evaluate_first)
        finally:
            components.close()
            log.close()


def _resume_file(
    folder: str | Path | None,
    identity: Mapping[str, str],
    components: Components,
    settings: TrainingSettings,
    *,
    total: int,
    resume: bool,
) -> ResumeFile | None:
    """Return the resume file in ``folder``; None without a folder, or where weights are sharded."""
    accelerator = components.accelerator
    if folder is None:
        return None
    if accelerator.is_sharded:
        if resume:
            raise ConfigError("a training with sharded weights (FSDP) cannot be resumed: train from the beginning")
        return None
    own = {name: str(value) for name, value in settings.to_dict().items() if name not in _FREE_SETTINGS}
    shared = {"processes": str(accelerator.num_processes), "steps": str(total)}
    return ResumeFile(Path(folder).absolute(), {**own, **shared, **identity})
