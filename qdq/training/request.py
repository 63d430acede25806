"""What a training from a checkpoint to a checkpoint is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    from qdq.data.columns import Columns
    from qdq.recipes.recipe import Recipe
    from qdq.source import ModelDirectory
    from qdq.training.settings import Distillation, InitialCalibration, TaskSettings, TrainingSettings

__all__ = ["FinetuneRequest", "resume_folder_of"]


@dataclass(frozen=True, kw_only=True)
class FinetuneRequest:
    """The arguments of :func:`qdq.training.finetuning.finetune_checkpoint`, which documents them."""

    model: ModelDirectory
    output: Path
    train_data: Any
    eval_data: Any
    task: TaskSettings
    settings: TrainingSettings
    columns: Columns | None
    recipe: Recipe | None
    calibration: InitialCalibration
    teacher: ModelDirectory | None
    distillation: Distillation
    tensorboard: Path | None
    resume: bool
    say: Callable[[str], None]
    progress: Callable[[int, int, str], None] | None

    @property
    def resume_folder(self) -> Path:
        """Folder of the resume file."""
        return resume_folder_of(self.output)

    @property
    def data_files(self) -> list[Path]:
        """The data that is read from files; a name of the Hub or rows in memory are none."""
        return [Path(data) for data in (self.train_data, self.eval_data) if isinstance(data, str | Path)]

    @property
    def log_file(self) -> Path:
        """File of the log, beside the output."""
        output = self.output.absolute()
        return output.with_name(f"{output.name}.training.csv")


def resume_folder_of(output: Path) -> Path:
    """Return the folder of the resume file of a training, beside its output."""
    output = Path(output).absolute()
    return output.with_name(f"{output.name}.training")
