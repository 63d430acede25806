"""The order of a training: epochs, their steps, and evaluations and writes of the resume file between them."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any

from qdq.errors import DataError
from qdq.processes import Interruption
from qdq.training.progress import TrainingProgress, TrainingResult
from qdq.training.random_state import get_random_state, set_random_state

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from qdq.training.components import Components
    from qdq.training.evaluation import Evaluator
    from qdq.training.process_batches import ProcessBatches
    from qdq.training.resume_file import RestoredTraining, ResumableTraining
    from qdq.training.settings import TrainingSettings
    from qdq.training.step import TrainingStep
    from qdq.training.training_log import TrainingLog

__all__ = ["EpochLoop"]

LOG_STEPS = 10  # between two rows of the log


class EpochLoop:
    """A training from its first step, or from its resume file, to its end.

    Args:
        components: The components of the training.
        batches: Batches of every epoch for this process.
        settings: Settings of the training.
        per_epoch: Steps of an epoch; None where the loader does not say how many batches it has.
        total: Steps of the training.
        step: Does one step.
        evaluator: Measures the model; None for a training without evaluations.
        resumable: Writes and reads the resume file; None for a training without one.
        log: Log that takes losses and learning rates.
        report: Called with the steps done, all steps, and a text about loss and metric; None for nobody.
    """

    def __init__(
        self,
        components: Components,
        batches: ProcessBatches,
        settings: TrainingSettings,
        *,
        per_epoch: int | None,
        total: int,
        step: TrainingStep,
        evaluator: Evaluator | None,
        resumable: ResumableTraining | None,
        log: TrainingLog,
        report: Callable[[int, int, str], None] | None,
    ) -> None:
        self._accelerator, self._scheduler = components.accelerator, components.scheduler
        self._batches, self._settings = batches, settings
        self._per_epoch, self._total = per_epoch, total
        self._step, self._evaluator, self._resumable = step, evaluator, resumable
        self._log, self._report = log, report
        self._progress = TrainingProgress()
        self._epoch_random: Any = None

    def train(self, *, resume: bool, evaluate_first: bool) -> TrainingResult:
        """Do all steps that are left.

        Args:
            resume: Whether to go on from the resume file, if there is one.
            evaluate_first: Whether the model before its first step counts as an evaluation.

        Raises:
            KeyboardInterrupt: If a signal came; the step was finished and the resume file written.
        """
        began = time.perf_counter()
        restored = None
        if resume and self._resumable is not None and self._resumable.file.exists:
            restored = self._resumable.restore()
            self._progress = restored.progress
            if self._evaluator is not None:
                self._evaluator.best = restored.best
        elif evaluate_first:
            self._evaluate()
        progress = self._progress
        # Several processes would not stop at the same step: there, signals end the training at once.
        catches_signals = self._resumable is not None and self._accelerator.num_processes == 1
        with Interruption(active=catches_signals) as interruption:
            while progress.step < self._total and not progress.stopped:
                self._train_epoch(interruption, restored)
                restored = None
        if self._evaluator is not None:
            self._evaluator.load_best()
        self._tell("")
        return TrainingResult(
            steps=progress.step,
            epochs=progress.epoch,
            stopped_early=progress.stopped,
            metric=progress.best,
            best_step=progress.best_step,
            history=progress.history,
            seconds=time.perf_counter() - began,
            log=self._log.to_csv(),
        )

    def _train_epoch(self, interruption: Interruption, restored: RestoredTraining | None) -> None:
        """Do the rest of the current epoch."""
        progress = self._progress
        batches = self._rest_of_batches(restored)
        while group := list(islice(batches, self._settings.accumulation)):
            self._add_loss(self._step(group, progress))
            progress.step += 1
            progress.batches += len(group)
            self._evaluate_and_save_if_due()
            if interruption.came:
                self._save()
                raise KeyboardInterrupt
            if progress.step == self._total or progress.stopped:
                break
        else:  # the loader had no more batches
            if progress.batches == 0:
                raise DataError(f"epoch {progress.epoch + 1} has no batch to train on")
            self._end_epoch()
            return
        # The training ended; its last step may also have been the last one of the epoch.
        if self._per_epoch is not None and progress.batches >= (self._batches.length or 0):
            self._end_epoch()

    def _rest_of_batches(self, restored: RestoredTraining | None) -> Iterator[tuple[Any, int]]:
        """Return the batches of the current epoch that are left.

        A resumed training makes the earlier batches again, with the random numbers that the epoch began with, and skips
        them: so the loader continues with the same batches as without the interruption.
        """
        progress, device = self._progress, self._accelerator.device
        if restored is None:
            self._epoch_random = get_random_state(device)
        else:
            self._epoch_random = restored.epoch_random
            set_random_state(self._epoch_random, device)
        batches = self._batches(progress.epoch)
        for _ in islice(batches, progress.batches):
            pass
        if restored is not None:
            set_random_state(restored.step_random, device)
        return batches

    def _end_epoch(self) -> None:
        self._progress.epoch += 1
        self._progress.batches = 0

    def _evaluate_and_save_if_due(self) -> None:
        progress, settings = self._progress, self._settings
        every = settings.eval_steps
        is_end = progress.step == self._total or (
            self._per_epoch is not None and progress.step % self._per_epoch == 0 and every is None
        )
        self._write_row(is_end=is_end)
        if self._evaluator is not None and (is_end or (every is not None and progress.step % every == 0)):
            self._evaluate()
            self._save()
        elif settings.save_steps is not None and progress.step % settings.save_steps == 0:
            self._save()

    def _evaluate(self) -> None:
        if self._evaluator is not None:
            self._evaluator(self._progress)
            self._tell("")

    def _save(self) -> None:
        if self._resumable is not None:
            best = None if self._evaluator is None else self._evaluator.best
            self._resumable.save(self._progress, best=best, epoch_random=self._epoch_random)

    def _add_loss(self, loss: float) -> None:
        losses, count = self._progress.losses
        self._progress.losses = (losses + loss, count + 1)
        self._tell(f"loss {(losses + loss) / (count + 1):.4f}")

    def _write_row(self, *, is_end: bool) -> None:
        progress = self._progress
        if progress.step % LOG_STEPS and not is_end:
            return
        losses, count = progress.losses
        epoch = progress.step / self._per_epoch if self._per_epoch else 0.0
        lr = self._scheduler.get_last_lr()[0]
        self._log.add(progress.step, {"epoch": round(epoch, 4), "loss": losses / max(count, 1), "lr": lr})
        progress.losses = (0.0, 0)

    def _tell(self, text: str) -> None:
        progress = self._progress
        if self._report is None or not self._accelerator.is_main_process:
            return
        if progress.history:
            # After the step comes the deciding metric.
            name, value = list(progress.history[-1].items())[1]
            text = f"{text}, {name} {value:.4f}".removeprefix(", ")
        self._report(progress.step, self._total, text)
