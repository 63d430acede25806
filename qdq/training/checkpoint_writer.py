"""Write the output of a training: the best checkpoint so far, its record, and at the end the log."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from qdq import checkpoint
from qdq.models.huggingface import save_model
from qdq.storage import atomic_directory, write_json, write_text_atomic

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

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
    """

    def __init__(
        self, request: FinetuneRequest, task: str, *, recipe: Recipe | None, calibration: dict[str, Any]
    ) -> None:
        self.has_written = False
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
        self.has_written = True

    def write_log(self, result: TrainingResult) -> None:
        """Write the log of the whole training beside the checkpoint."""
        write_text_atomic(self._request.log_file, result.log)

    def to_dict(self, result: TrainingResult) -> dict[str, Any]:
        """Return the record of the written checkpoint and the result of the training, as plain values."""
        # Without evaluations the checkpoint is that of the last step.
        step = result.steps if result.metric is None else result.best_step
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
            "metrics": metrics,
            "recipe": None if self._recipe is None else self._recipe.name,
            "batch_size": request.task.batch_size,
            "seq_len": request.task.seq_len,
            "settings": request.settings.to_dict(),
            "teacher": teacher,
        }


class _LeaveUnchanged(Exception):  # noqa: N818 (not an error)
    """Ends an atomic directory without replacing its target."""


def check_output(output: Path) -> None:
    """Raise if a checkpoint cannot be written to ``output``, before hours of work.

    Raises:
        ConfigError: If the directory holds something that was not written by qdq.
        StorageError: If it cannot be written.
    """
    with suppress(_LeaveUnchanged), atomic_directory(output, kind="checkpoint"):
        raise _LeaveUnchanged
