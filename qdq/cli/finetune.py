"""``qdq finetune``: train a float head, or a quantized checkpoint with fake quantization (QAT)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdq.cli.column_options import USUAL_COLUMNS, ColumnOptions
from qdq.cli.processes import is_first, set_threads
from qdq.cli.recipe_options import NO_CHANGES, RecipeChanges, RecipeChoice
from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command
from qdq.cli.tables import new_table

if TYPE_CHECKING:
    from rich.table import Table

    from qdq.recipes.recipe import Recipe

__all__ = ["finetune"]

#: A trained model that is quantized loses more by large steps than it gains: it is close to where it should be.
FLOAT_LR, QAT_LR = 5e-5, 5e-6

_TASKS = "sequence-classification, token-classification, question-answering, multiple-choice, masked-lm or sts; "
_STEPS = "Steps"
_QAT = "Quantizers in training"
_TEACHER = "Teacher"


@command
def finetune(
    model: Annotated[Path, typer.Option("--model", "-m", metavar="DIR", help="Checkpoint, float or quantized.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The best checkpoint, to write.")],
    train_data: Annotated[str, typer.Option(metavar="FILE", help="Labelled examples: .tsv, .csv, .jsonl, .conll, ...")],
    eval_data: Annotated[
        str | None, typer.Option(metavar="FILE", help="To measure on; without it the last step is what counts.")
    ] = None,
    task: Annotated[str | None, typer.Option(metavar="TASK", help=f"{_TASKS}that of the head if not given.")] = None,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            metavar="NAME|FILE",
            help="Quantize a float model first, its ranges found on the training data.",
        ),
    ] = None,
    epochs: Annotated[int, typer.Option(metavar="N", help="Passes over the data.", min=1, rich_help_panel=_STEPS)] = 3,
    max_steps: Annotated[
        int | None, typer.Option(metavar="N", help="End after so many steps.", min=1, rich_help_panel=_STEPS)
    ] = None,
    lr: Annotated[
        float | None,
        typer.Option(
            metavar="X",
            help=f"Highest learning rate; {FLOAT_LR:g} if not given, in QAT {QAT_LR:g}.",
            rich_help_panel=_STEPS,
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="B", help="Rows in a batch of a process.", min=1)] = 32,
    seq_len: Annotated[
        int | None, typer.Option(metavar="L", help="Longest row in tokens; what the model takes if not given.", min=3)
    ] = None,
    weight_decay: Annotated[float, typer.Option(metavar="X", help="Of AdamW.", rich_help_panel=_STEPS)] = 0.01,
    schedule: Annotated[
        str, typer.Option(metavar="linear|cosine|constant", help="Of the learning rate.", rich_help_panel=_STEPS)
    ] = "linear",
    warmup: Annotated[
        float, typer.Option(metavar="SHARE", help="Of the steps, to the highest rate.", rich_help_panel=_STEPS)
    ] = 0.1,
    max_grad_norm: Annotated[
        float, typer.Option(metavar="X", help="Longest gradient; 0: any.", rich_help_panel=_STEPS)
    ] = 1.0,
    accumulation: Annotated[
        int, typer.Option(metavar="N", help="Batches that make a step.", min=1, rich_help_panel=_STEPS)
    ] = 1,
    mixed_precision: Annotated[
        str | None,
        typer.Option(metavar="no|bf16|fp16", help="As accelerate launch says if not given.", rich_help_panel=_STEPS),
    ] = None,
    gradient_checkpointing: Annotated[
        bool,
        typer.Option(
            "--gradient-checkpointing", metavar="", help="Less memory, a third more time.", rich_help_panel=_STEPS
        ),
    ] = False,
    eval_steps: Annotated[
        int | None,
        typer.Option(metavar="N", help="Between evaluations; if not given an epoch, in QAT a quarter.", min=1),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(metavar="NAME", help="That decides; the first that qdq evaluate shows if not given.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(metavar="N", help="End after so many evaluations without a better one.", min=1)
    ] = None,
    new_head: Annotated[
        bool, typer.Option("--new-head", metavar="", help="Begin with a new head although there is one.")
    ] = False,
    multi_label: Annotated[
        bool, typer.Option("--multi-label", metavar="", help="A text can have any number of labels.")
    ] = False,
    ranges: Annotated[
        str,
        typer.Option(
            metavar="fixed|moving|learned",
            help="Of activations: as calibrated, moving averages, or all scales trained (LSQ).",
            rich_help_panel=_QAT,
        ),
    ] = "fixed",
    scale_lr: Annotated[
        float,
        typer.Option(metavar="X", help="Learned scales: rate relative to a scale's size.", rich_help_panel=_QAT),
    ] = 1e-3,
    freeze_ranges: Annotated[
        float, typer.Option(metavar="SHARE", help="Of the steps, then ranges stay.", rich_help_panel=_QAT)
    ] = 0.8,
    activations_from: Annotated[
        float, typer.Option(metavar="SHARE", help="Of the steps in float at first.", rich_help_panel=_QAT)
    ] = 0.0,
    weights_from: Annotated[
        float, typer.Option(metavar="SHARE", help="Of the steps until weights follow.", rich_help_panel=_QAT)
    ] = 0.0,
    calibration_samples: Annotated[
        int, typer.Option(metavar="N", help="With --recipe, to find ranges on.", min=1, rich_help_panel=_QAT)
    ] = 512,
    refine: Annotated[
        bool,
        typer.Option(
            "--refine",
            metavar="",
            help="With --recipe: its smoothing and shifts, too, which make steps slower.",
            rich_help_panel=_QAT,
        ),
    ] = False,
    recipe_changes: RecipeChanges = NO_CHANGES,
    teacher: Annotated[
        Path | None, typer.Option(metavar="DIR", help="A float model to learn from.", rich_help_panel=_TEACHER)
    ] = None,
    task_weight: Annotated[
        float, typer.Option(metavar="X", help="Of the labels in the loss.", rich_help_panel=_TEACHER)
    ] = 1.0,
    logits_weight: Annotated[
        float, typer.Option(metavar="X", help="Of the teacher's logits, or embeddings.", rich_help_panel=_TEACHER)
    ] = 1.0,
    hidden_weight: Annotated[
        float, typer.Option(metavar="X", help="Of its hidden states.", rich_help_panel=_TEACHER)
    ] = 0.0,
    attention_weight: Annotated[
        float, typer.Option(metavar="X", help="Of its attention.", rich_help_panel=_TEACHER)
    ] = 0.0,
    temperature: Annotated[
        float, typer.Option(metavar="T", help="That softens both logits.", rich_help_panel=_TEACHER)
    ] = 2.0,
    columns: ColumnOptions = USUAL_COLUMNS,
    split: Annotated[str | None, typer.Option(metavar="NAME", help="Of a saved dataset, to train on.")] = None,
    eval_split: Annotated[str | None, typer.Option(metavar="NAME", help="Likewise, to measure on.")] = None,
    save_steps: Annotated[
        int | None, typer.Option(metavar="N", help="Between states to resume from; one at each evaluation anyhow.")
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            metavar="",
            help="Go on where the same command was interrupted, with the same result; its state lies in "
            "<output>.training.",
        ),
    ] = False,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="TensorBoard's files, too; CSV is always written.")
    ] = None,
    threads: Annotated[int | None, typer.Option(metavar="N", help="Threads of the computation.", min=1)] = None,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,
) -> None:
    """Train a head, or a quantized model so that it computes in int8 what it did in float.

    Needs the extra "train". Several processes: accelerate launch -m qdq finetune ..., or torchrun.
    Example: qdq finetune -m quantized/ -o qat/ --train-data train.tsv --eval-data dev.tsv --teacher float/
    """
    is_speaking = is_first()
    session = Session(json=json and is_speaking, verbose=verbose, quiet=quiet or not is_speaking)
    from qdq.training.distillation import Distillation
    from qdq.training.finetuning import Job, state_folder
    from qdq.training.settings import TrainingSettings

    settings = TrainingSettings(
        epochs=epochs,
        max_steps=max_steps,
        lr=_rate(model, is_quantizing=recipe is not None) if lr is None else lr,
        weight_decay=weight_decay,
        schedule=schedule,
        warmup=warmup,
        max_grad_norm=max_grad_norm,
        accumulation=accumulation,
        mixed_precision=mixed_precision,
        gradient_checkpointing=gradient_checkpointing,
        seed=seed,
        eval_steps=eval_steps,
        patience=patience,
        save_steps=save_steps,
        ranges=ranges,
        scale_lr=scale_lr,
        freeze_ranges=freeze_ranges,
        activations_from=activations_from,
        weights_from=weights_from,
    )
    distillation = Distillation(
        task=task_weight,
        logits=logits_weight,
        hidden=hidden_weight,
        attention=attention_weight,
        temperature=temperature,
    )
    set_threads(threads)
    choice = RecipeChoice(
        recipe=recipe or "linear",
        changes=recipe_changes,
    )
    chosen = _recipe(choice, model, task, is_wanted=recipe is not None)
    try:
        with session.progress("training", total=1) as advance:
            document = Job(
                model=model,
                output=output,
                train_data=train_data,
                eval_data=eval_data,
                task=task,
                settings=settings,
                batch_size=batch_size,
                seq_len=seq_len,
                columns=columns.chosen(),
                split=split,
                eval_split=eval_split,
                recipe=chosen,
                calibration_samples=calibration_samples,
                refine=refine,
                metric=metric,
                teacher=teacher,
                distillation=distillation,
                new_head=new_head,
                multi_label=multi_label,
                tensorboard=tensorboard,
                resume=resume,
                say=session.say,
                progress=lambda done, total, how: advance(done, f"training, {how}" if how else "training", total),
            ).run()
    except KeyboardInterrupt:
        kept = state_folder(output)
        if not kept.is_dir():
            raise
        raise KeyboardInterrupt(
            f"interrupted; {kept} keeps the state: the same command with --resume goes on"
        ) from None
    if is_speaking:
        session.result(document, *_shown(output, document))


def _rate(model: Path, *, is_quantizing: bool) -> float:
    """The learning rate where none is given."""
    from qdq.checkpoint import is_quantized

    return QAT_LR if is_quantizing or is_quantized(model) else FLOAT_LR


def _recipe(choice: RecipeChoice, model: Path, task: str | None, *, is_wanted: bool) -> Recipe | None:
    from qdq.errors import ConfigError
    from qdq.models.huggingface import read_config
    from qdq.recipes.plan import skeleton
    from qdq.training.initial_model import chosen_task

    if not is_wanted:
        if choice.changes:
            raise ConfigError("options that change a recipe go with --recipe; a quantized checkpoint has its own")
        return None
    return choice.plan(skeleton(read_config(model), chosen_task(model, task))).recipe


def _shown(output: Path, document: dict[str, Any]) -> list[Table | str]:
    how = f"QAT with the recipe {document['recipe']}" if document["quantized"] else "in float"
    early = ", ended early" if document["stopped_early"] else ""
    shown: list[Table | str] = [
        f"{output}: {document['task']}, {how}, {document['steps']} steps{early}, {document['seconds']:.0f} s; "
        f"the checkpoint is that of step {document['step']}"
    ]
    if document["history"]:
        names = [name for name in document["history"][0] if name != "step"]
        table = new_table("step", *names)
        for row in document["history"]:
            mark = " *" if row["step"] == document["best_step"] else ""
            table.add_row(f"{row['step']}{mark}", *(f"{row[name]:.4f}" for name in names))
        shown.append(table)
    return shown
