"""What a training writes: the checkpoint, each time that a better one comes, its record, and the log."""

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
    from qdq.training.finetuning import Job
    from qdq.training.initial_model import Start
    from qdq.training.result import TrainingResult
    from qdq.training.resume_file import Position

__all__ = ["Writer", "check_target"]

RECORD_FILE = "training.json"


class Writer:
    """Writes the checkpoint, each time that a better one comes.

    Args:
        job: that is done.
        start: what it began with.
        recipe: of a model that quantizes; None: it is float.
        calibration: the record of its ranges.

    Attributes:
        has_written: whether there is one.
    """

    def __init__(self, job: Job, start: Start, recipe: Recipe | None, calibration: dict[str, Any]) -> None:
        self.has_written = False
        self._job, self._start, self._recipe, self._calibration = job, start, recipe, calibration

    def write(self, model: Model, position: Position) -> None:
        """The model as it is now, in the place of an earlier one."""
        job = self._job
        record = self._about(position.history, position.step)
        with atomic_directory(job.output, kind="checkpoint") as folder:
            if self._recipe is None:
                save_model(model, folder)
                checkpoint.copy_tokenizer_files(job.model, folder)
            else:
                checkpoint.write(model, folder, recipe=self._recipe, calibration=self._calibration, source=job.model)
            write_json(folder / RECORD_FILE, record)
        self.has_written = True

    def finish(self, result: TrainingResult) -> None:
        """The log of the whole training, beside the checkpoint."""
        output = self._job.output.absolute()
        write_text_atomic(output.with_name(f"{output.name}.training.csv"), result.log)

    def record(self, result: TrainingResult) -> dict[str, Any]:
        """What came of it, for machines."""
        return {
            **self._about(result.history, result.steps if result.metric is None else result.best_step),
            **result.to_dict(),
        }

    def _about(self, history: Sequence[dict[str, Any]], step: int) -> dict[str, Any]:
        job = self._job
        figures = next((dict(row) for row in history if row["step"] == step), {})
        figures.pop("step", None)
        return {
            "task": self._start.task,
            "step": step,
            "metrics": figures,
            "recipe": None if self._recipe is None else self._recipe.name,
            "batch_size": job.batch_size,
            "seq_len": job.seq_len,
            "settings": job.settings.to_dict(),
            "teacher": None if job.teacher is None else {"model": str(job.teacher), **asdict(job.distillation)},
        }


class _Untouched(Exception):  # noqa: N818 (no error)
    """Leaves a directory as it was."""


def check_target(output: Path) -> None:
    """Refuse an output that cannot be written, before hours of work.

    Raises:
        ConfigError: something that is not ours is in the way.
        StorageError: it cannot be written.
    """
    with suppress(_Untouched), atomic_directory(output, kind="checkpoint"):
        raise _Untouched
