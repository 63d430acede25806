"""Write the output of a training: the best checkpoint so far, its record, and at the end the log."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qdq import checkpoint
from qdq.errors import ConfigError, QDQError
from qdq.models.huggingface import save_model
from qdq.storage import atomic_directory, check_replaceable_file, read_json, write_json, write_text_atomic
from qdq.training.progress import plain_figures
from qdq.training.resume_file import KIND as RESUME_KIND

if TYPE_CHECKING:
    from collections.abc import Sequence

    from qdq.models.model import Model
    from qdq.recipes.recipe import Recipe
    from qdq.training.progress import TrainingProgress, TrainingResult
    from qdq.training.request import FinetuneRequest

__all__ = ["CheckpointWriter", "check_output"]

RECORD_FILE = "training.json"


class CheckpointWriter:
    """Writes a checkpoint whenever a better one is found.

    Args:
        request: What the training is asked for.
        task: Task that is trained.
        recipe: Recipe of a model that quantizes; None for a float model.
        calibration: Record of the model's calibration; empty for a float model.

    Attributes:
        has_written: Whether there is a checkpoint of this training.
        step: Step of the checkpoint that was written last; None before the first one.
    """

    def __init__(
        self, request: FinetuneRequest, task: str, *, recipe: Recipe | None, calibration: dict[str, Any]
    ) -> None:
        self.has_written = False
        self.step: int | None = None
        self._request, self._task, self._recipe, self._calibration = request, task, recipe, calibration

    def write(self, model: Model, progress: TrainingProgress) -> None:
        """Write the model as it is now, in place of an earlier checkpoint.

        Raises:
            StorageError: If writing fails.
        """
        request = self._request
        record = self._record_of(progress.history, progress.step)
        with atomic_directory(request.output, kind="checkpoint") as folder:
            if self._recipe is None:
                save_model(model, folder)
                checkpoint.copy_tokenizer(request.model, folder)
            else:
                checkpoint.write(
                    model, folder, recipe=self._recipe, calibration=self._calibration, source=request.model
                )
            write_json(folder / RECORD_FILE, record)
        self.has_written, self.step = True, progress.step

    def holds(self, step: int) -> bool:
        """Return whether the output is the checkpoint of ``step``; a training before a resume may have written it."""
        try:
            record = read_json(self._request.output / RECORD_FILE)
        except QDQError:
            return False
        return record.get("step") == step

    def write_log(self, result: TrainingResult) -> None:
        """Write the log of the whole training beside the checkpoint."""
        check_replaceable_file(self._request.log_file, "training log")
        write_text_atomic(self._request.log_file, result.log)

    def to_dict(self, result: TrainingResult) -> dict[str, Any]:
        """Return the record of the written checkpoint and the result of the training, as plain values."""
        # Without a metric the checkpoint is that of the last step.
        step = result.steps if result.metric is None else result.best_step
        step = step if self.step is None else self.step
        return {**self._record_of(result.history, step), **result.to_dict()}

    def _record_of(self, history: Sequence[dict[str, Any]], step: int) -> dict[str, Any]:
        request = self._request
        metrics = next((dict(row) for row in history if row["step"] == step), {})
        metrics.pop("step", None)
        teacher = None
        if request.teacher is not None:
            teacher = {"model": str(request.teacher), **asdict(request.distillation)}
        return {
            "task": self._task,
            "step": step,
            "metrics": plain_figures(metrics),
            "recipe": None if self._recipe is None else self._recipe.name,
            "batch_size": request.task.batch_size,
            "seq_len": request.task.seq_len,
            "settings": request.settings.to_dict(),
            "teacher": teacher,
        }


class _LeaveUnchanged(Exception):  # noqa: N818 (not an error)
    """Ends an atomic directory without replacing its target."""


def check_output(request: FinetuneRequest) -> None:
    """Raise if the checkpoint, the log or the resume file cannot be written, before hours of work.

    Raises:
        ConfigError: If something is in the way that was not written by qdq, or that the training reads.
        StorageError: If it cannot be written.
    """
    read = [None if one is None else one.path for one in (request.model, request.teacher)]
    with suppress(_LeaveUnchanged), atomic_directory(request.output, kind="checkpoint", inputs=read):
        if (
            request.tensorboard is not None
            and os.path.lexists(request.tensorboard)
            and not request.tensorboard.is_dir()
        ):
            raise ConfigError(f"{request.tensorboard}: is not a folder; give a folder for TensorBoard's files")
        # The parents of the output exist for as long as this block lasts.
        check_replaceable_file(request.log_file, "training log", inputs=[*read, *request.data_files])
        with atomic_directory(request.resume_folder, kind=RESUME_KIND):
            raise _LeaveUnchanged
