"""The loop as a function: batches in, steps of the optimizer, evaluations, states to resume from.

What concerns devices, processes and precision is accelerate's: ``accelerate launch`` and ``torchrun`` start it as is.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.errors import ConfigError
from qdq.training.batches import EpochBatches, lengths
from qdq.training.components import make_components
from qdq.training.epochs import Run
from qdq.training.evaluation import Evaluation
from qdq.training.launch import launched
from qdq.training.log import Log
from qdq.training.objective import model_loss
from qdq.training.resume_file import Store
from qdq.training.settings import TrainingSettings
from qdq.training.step import Step
from qdq.training.training_state import Snapshots

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from qdq.training.batches import Loader
    from qdq.training.components import Components
    from qdq.training.evaluation import Evaluate
    from qdq.training.objective import Loss
    from qdq.training.result import TrainingResult
    from qdq.training.resume_file import Position

__all__ = ["finetune"]

_FREE = ("save_steps", "patience")  # do not change what a step does


def finetune(
    model: nn.Module,
    loader: Loader,
    *,
    loss: Loss | None = None,
    evaluate: Evaluate | None = None,
    better: str = "higher",
    settings: TrainingSettings | None = None,
    state: str | Path | None = None,
    identity: Mapping[str, str] | None = None,
    resume: bool = False,
    keep_best: bool = True,
    on_best: Callable[[Any, Position], None] | None = None,
    evaluate_first: bool = False,
    log: Log | None = None,
    progress: Callable[[int, int, str], None] | None = None,
    accelerator: Any = None,
    **options: Any,
) -> TrainingResult:
    """Train a model in place: a float one, or one that quantizes, with the gradient straight through.

    A quantizing model is to be made ready with :func:`qdq.training.quantization.ready_for_training` if it was refined
    or if its scales are to be trained.

    Args:
        model: any module; if it has quantizers, calibrated ones. It ends on the device it was trained on, quantizing.
        loader: mappings of tensors that have the batch as first axis. A DataLoader is shared out to several processes
            by accelerate, anything else by rows.
        loss: of the model and a batch, a mean; the one that the model returns itself when None.
        evaluate: see :data:`qdq.training.evaluation.Evaluate`; called after every epoch, or as ``eval_steps`` says.
        better: ``higher`` or ``lower``, which way the first figure gets better.
        settings: how to train; or its fields by name.
        state: folder for what an interrupted training goes on from; None: nothing is kept.
        identity: what ``state`` belongs to besides the settings: model, data, ...
        resume: go on from ``state`` where there is one.
        keep_best: end with the weights of the best evaluation, not with the last ones.
        on_best: called in the first process with the model and how far it is, when an evaluation was the best so far.
        evaluate_first: count the model as it comes as the first evaluation.
        log: that takes the figures.
        progress: told steps done, steps in all, and how it goes.
        accelerator: of yours; one is made when None.
        **options: fields of :class:`TrainingSettings`.

    Raises:
        CalibrationError: slots are not calibrated.
        ConfigError: settings that do not go together or with the model.
        DataError: no batches, or batches that do not fit the model.
        TrainingError: a loss that is no number, or a state of another training.
        MissingPackageError: accelerate is not installed.
        StorageError: the state cannot be written.
        KeyboardInterrupt: interrupted by Ctrl-C or SIGTERM, at the end of a step, after the state was written.
    """
    if settings is None:
        settings = TrainingSettings(**options)
    elif options:
        raise ConfigError(f"give settings, or {', '.join(options)} by name, not both")
    if better not in {"higher", "lower"}:
        raise ConfigError(f"better is {better!r}, must be higher or lower")
    if settings.patience is not None and evaluate is None:
        raise ConfigError("patience needs evaluations: without them nobody knows whether there is progress")
    log = log or Log()
    with launched(settings, accelerator) as launch:
        batches = EpochBatches(loader, launch)
        per_epoch, total = lengths(batches.length, settings)
        components = make_components(
            model, total, settings, launch, is_own_loss=loss is not None and loss is not model_loss
        )
        try:
            snapshots = _snapshots(state, identity or {}, components, log, settings, total=total, resume=resume)
            evaluation = None
            if evaluate is not None:
                evaluation = Evaluation(
                    components,
                    evaluate,
                    better=better,
                    patience=settings.patience,
                    keep_best=keep_best,
                    on_best=on_best,
                    log=log,
                )
            run = Run(
                components,
                batches,
                settings,
                per_epoch=per_epoch,
                total=total,
                step=Step(components, loss or model_loss, max_grad_norm=settings.max_grad_norm),
                evaluation=evaluation,
                snapshots=snapshots,
                log=log,
                progress=progress,
            )
            return run.all(resume=resume, evaluate_first=evaluate_first)
        finally:
            components.close()
            log.close()


def _snapshots(
    state: str | Path | None,
    identity: Mapping[str, str],
    components: Components,
    log: Log,
    settings: TrainingSettings,
    *,
    total: int,
    resume: bool,
) -> Snapshots | None:
    """What keeps states in the folder ``state``; None where there is none, or none can be taken."""
    launch = components.launch
    if state is None:
        return None
    if launch.is_sharded:
        if resume:
            raise ConfigError("a training with sharded weights (FSDP) cannot be resumed: begin anew")
        return None
    plain = {name: str(value) for name, value in settings.to_dict().items() if name not in _FREE}
    shared = {"processes": str(launch.num_processes), "steps": str(total)}
    return Snapshots(Store(Path(state).absolute(), {**plain, **shared, **identity}), components, log)
