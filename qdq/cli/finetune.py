"""``qdq finetune``: train a float head, or a quantized checkpoint with fake quantization (QAT)."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdq.cli.column_options import USUAL_COLUMNS, ColumnOptions
from qdq.cli.loading import opened, opened_beside
from qdq.cli.recipe_options import NO_CHANGES, RecipeChanges, RecipeChoice
from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command
from qdq.cli.tables import new_table
from qdq.cli.threads import ThreadsOption, set_threads
from qdq.load_settings import DEFAULT_LOADING, LoadSettings
from qdq.processes import Process
from qdq.training.settings import Distillation, InitialCalibration, TaskSettings, TrainingSettings

if TYPE_CHECKING:
    from rich.table import Table

    from qdq.recipes.recipe import Recipe
    from qdq.source import ModelDirectory

__all__ = ["finetune"]

_TASK, _TRAINING, _CALIBRATION, _DISTILLATION = TaskSettings(), TrainingSettings(), InitialCalibration(), Distillation()
_QUANTIZERS = "Quantizers in training"
_TEACHER = "Teacher"


@command
def finetune(
    model: Annotated[
        Path, typer.Option("--model", "-m", metavar="DIR", help="Checkpoint to train, float or quantized.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="DIR", help="Directory to write the best checkpoint to.")
    ],
    train_data: Annotated[
        str, typer.Option(metavar="FILE", help="Labeled examples to train on: .tsv, .csv, .jsonl, .conll, ...")
    ],
    eval_data: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Labeled examples that choose the best checkpoint; without them the last step is kept.",
        ),
    ] = None,
    task: TaskSettings = _TASK,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            metavar="NAME|FILE",
            help="Quantize a float model first, by this preset or YAML file, calibrated on the training data.",
        ),
    ] = None,
    settings: Annotated[TrainingSettings, "Steps"] = _TRAINING,
    calibration: Annotated[InitialCalibration, _QUANTIZERS] = _CALIBRATION,
    recipe_changes: RecipeChanges = NO_CHANGES,
    teacher: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Float checkpoint whose outputs the model learns to reproduce.",
            rich_help_panel=_TEACHER,
        ),
    ] = None,
    distillation: Annotated[Distillation, _TEACHER] = _DISTILLATION,
    columns: ColumnOptions = USUAL_COLUMNS,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            metavar="",
            help="Continue an interrupted run of the same command from <output>.training, with the same result.",
            rich_help_panel="Resuming",
        ),
    ] = False,
    tensorboard: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Also write logs for TensorBoard to this directory. <output>.training.csv is always written.",
        ),
    ] = None,
    loading: LoadSettings = DEFAULT_LOADING,
    threads: ThreadsOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,
) -> None:
    """Train a float model on a task, or a quantized model with fake quantization (QAT).

    Needs the extra "train", and "evaluate" for token-classification. To use several processes, replace "qdq" by
    "accelerate launch -m qdq" or "torchrun --nproc-per-node N -m qdq".

    Example: qdq finetune -m quantized/ -o qat/ --train-data train.tsv
    --eval-data dev.tsv --teacher float/
    """
    # All processes of torchrun or accelerate run this command; one of them prints.
    is_speaking = Process.current().is_first
    session = Session(json=json and is_speaking, verbose=verbose, quiet=quiet or not is_speaking)
    from qdq.training.finetuning import finetune_checkpoint
    from qdq.training.request import resume_folder_of

    settings = replace(settings, seed=seed)
    set_threads(threads)
    directory = opened(model, loading, seed=seed)
    chosen = _recipe(RecipeChoice(recipe=recipe or "linear", changes=recipe_changes), directory, task.task, recipe)
    if resume and not resume_folder_of(output).is_dir():
        session.say(f"nothing to resume in {resume_folder_of(output)}: the training starts from the beginning")
    try:
        with session.progress("training", total=1) as advance:
            document = finetune_checkpoint(
                directory,
                output,
                train_data,
                eval_data=eval_data,
                task=task,
                settings=settings,
                columns=columns.chosen(),
                recipe=chosen,
                calibration=calibration,
                teacher=None if teacher is None else opened_beside(teacher, loading, seed=seed),
                distillation=distillation,
                tensorboard=tensorboard,
                resume=resume,
                say=session.say,
                progress=lambda done, total, how: advance(done, f"training, {how}" if how else "training", total),
            )
    except KeyboardInterrupt:
        folder = resume_folder_of(output)
        if not folder.is_dir():
            raise
        raise KeyboardInterrupt(
            f"interrupted; the training is kept in {folder}: the same command with --resume goes on"
        ) from None
    if is_speaking:
        session.result(document, *_shown(output, document))


def _recipe(choice: RecipeChoice, directory: ModelDirectory, task: str | None, name: str | None) -> Recipe | None:
    """Return the recipe with its changes; None if ``name``, the option --recipe, is not given."""
    from qdq.errors import ConfigError
    from qdq.training.initial_model import choose_task

    if name is None:
        if choice.changes:
            raise ConfigError("options that change a recipe need --recipe; a quantized checkpoint keeps its own recipe")
        return None
    return choice.recipe_for(directory, choose_task(directory, task))


def _shown(output: Path, document: dict[str, Any]) -> list[Table | str]:
    how = f"QAT with the recipe {document['recipe']}" if document["quantized"] else "in float"
    steps = f"{document['steps']} step{'' if document['steps'] == 1 else 's'}"
    early = ", ended early" if document["stopped_early"] else ""
    shown: list[Table | str] = [
        f"{output}: {document['task']}, {how}, {steps}{early}, {document['seconds']:.0f} s; "
        f"the checkpoint of step {document['step']}"
    ]
    if document["history"]:
        names = [name for name in document["history"][0] if name != "step"]
        table = new_table("step", *names)
        for row in document["history"]:
            mark = " *" if row["step"] == document["best_step"] and document["metric"] is not None else ""
            table.add_row(f"{row['step']}{mark}", *(_figure(row[name]) for name in names))
        shown.append(table)
    return shown


def _figure(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4f}"
