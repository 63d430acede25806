"""The order of things in a training: epochs, steps, evaluations, states to go on from."""

from __future__ import annotations

import time
from itertools import islice
from typing import TYPE_CHECKING, Any

from qdq.errors import DataError
from qdq.processes import Interruption
from qdq.training.result import TrainingResult
from qdq.training.resume_file import Position, get_random, set_random

if TYPE_CHECKING:
    from collections.abc import Callable

    from qdq.training.batches import EpochBatches
    from qdq.training.components import Components
    from qdq.training.evaluation import Evaluation
    from qdq.training.log import Log
    from qdq.training.settings import TrainingSettings
    from qdq.training.step import Step
    from qdq.training.training_state import Restored, Snapshots

__all__ = ["Run"]

LOG_STEPS = 10


class Run:
    """One training, from its first step or a state to its end.

    Args:
        components: what is trained.
        batches: of every epoch.
        settings: when to evaluate and to save.
        per_epoch: steps of an epoch; None where nobody knows.
        total: steps of all.
        step: does one.
        evaluation: measures the model; None: nothing does.
        snapshots: keeps what can be resumed from; None: nothing is kept.
        log: that takes the figures.
        progress: told steps done, steps in all, and how it goes.
    """

    def __init__(
        self,
        components: Components,
        batches: EpochBatches,
        settings: TrainingSettings,
        *,
        per_epoch: int | None,
        total: int,
        step: Step,
        evaluation: Evaluation | None,
        snapshots: Snapshots | None,
        log: Log,
        progress: Callable[[int, int, str], None] | None,
    ) -> None:
        self._launch, self._batches, self._settings = components.launch, batches, settings
        self._scheduler = components.scheduler
        self._per_epoch, self._total = per_epoch, total
        self._step, self._evaluation, self._snapshots = step, evaluation, snapshots
        self._log, self._progress = log, progress
        self._position = Position()
        self._epoch_random: Any = None

    def all(self, *, resume: bool, evaluate_first: bool) -> TrainingResult:
        """Everything that is left to do.

        Args:
            resume: go on from a snapshot where there is one.
            evaluate_first: count the model as it comes as the first evaluation.

        Raises:
            KeyboardInterrupt: interrupted, at the end of a step, after the state was written.
        """
        began = time.perf_counter()
        restored = None
        if resume and self._snapshots is not None and self._snapshots.store.is_there:
            restored = self._snapshots.restore()
            self._position = restored.position
            if self._evaluation is not None:
                self._evaluation.best = restored.best
        elif evaluate_first:
            self._evaluate()
        here = self._position
        with Interruption(active=self._snapshots is not None and self._launch.num_processes == 1) as interruption:
            while here.step < self._total and not here.stopped:
                self._epoch(interruption, restored)
                restored = None
        if self._evaluation is not None:
            self._evaluation.load_best()
        self._tell("")
        return TrainingResult(
            steps=here.step,
            epochs=here.epoch,
            stopped_early=here.stopped,
            metric=here.best,
            best_step=here.best_step,
            history=here.history,
            seconds=time.perf_counter() - began,
            log=self._log.to_csv(),
        )

    def _epoch(self, interruption: Interruption, restored: Restored | None) -> None:
        """The rest of an epoch."""
        here = self._position
        batches = self._rest_of_batches(restored)
        while group := list(islice(batches, self._settings.accumulation)):
            self._take_loss(self._step(group, here))
            here.step += 1
            here.batches += len(group)
            self._between_steps()
            if interruption.came:
                self._save()
                raise KeyboardInterrupt
            if here.step == self._total or here.stopped:
                break
        else:
            if here.batches == 0:
                raise DataError(f"epoch {here.epoch + 1} has no batch to train on")
            self._end_epoch()
            return
        if self._per_epoch is not None and here.batches >= (self._batches.length or 0):
            self._end_epoch()

    def _rest_of_batches(self, restored: Restored | None) -> Any:
        """The batches of an epoch that are yet to come: those that were done are made again, and passed over."""
        here, device = self._position, self._launch.device
        if restored is None:
            self._epoch_random = get_random(device)
        else:
            self._epoch_random = restored.epoch_random
            set_random(self._epoch_random, device)
        batches = self._batches(here.epoch)
        for _ in islice(batches, here.batches):
            pass
        if restored is not None:
            set_random(restored.step_random, device)
        return batches

    def _end_epoch(self) -> None:
        self._position.epoch += 1
        self._position.batches = 0

    def _between_steps(self) -> None:
        """Evaluate and save, where that is due."""
        here, settings = self._position, self._settings
        every = settings.eval_steps
        is_end = here.step == self._total or (
            self._per_epoch is not None and here.step % self._per_epoch == 0 and every is None
        )
        self._write_row(is_end=is_end)
        if self._evaluation is not None and (is_end or (every is not None and here.step % every == 0)):
            self._evaluate()
            self._save()
        elif settings.save_steps is not None and here.step % settings.save_steps == 0:
            self._save()

    def _evaluate(self) -> None:
        if self._evaluation is not None:
            self._evaluation(self._position)
            self._tell("")

    def _save(self) -> None:
        if self._snapshots is not None:
            best = None if self._evaluation is None else self._evaluation.best
            self._snapshots.save(self._position, best=best, epoch_random=self._epoch_random)

    def _take_loss(self, figure: float) -> None:
        losses, count = self._position.losses
        self._position.losses = (losses + figure, count + 1)
        self._tell(f"loss {(losses + figure) / (count + 1):.4f}")

    def _write_row(self, *, is_end: bool) -> None:
        here = self._position
        if here.step % LOG_STEPS and not is_end:
            return
        losses, count = here.losses
        epoch = here.step / self._per_epoch if self._per_epoch else 0.0
        rate = self._scheduler.get_last_lr()[0]
        self._log.add(here.step, {"epoch": round(epoch, 4), "loss": losses / max(count, 1), "lr": rate})
        here.losses = (0.0, 0)

    def _tell(self, text: str) -> None:
        here = self._position
        if self._progress is None or not self._launch.is_main_process:
            return
        if here.history:
            name, value = list(here.history[-1].items())[1]
            text = f"{text}, {name} {value:.4f}".removeprefix(", ")
        self._progress(here.step, self._total, text)
