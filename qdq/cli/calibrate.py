"""``qdq calibrate``: from a float checkpoint and sample text to a quantized checkpoint."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calibration.settings import CalibrationSettings, RangeAdjustments
from qdq.cli.loading import opened
from qdq.cli.recipe_options import AS_RECIPE_SAYS, NO_CHANGES, RecipeChanges, RecipeChoice, RefinementChoice
from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command
from qdq.load_settings import DEFAULT_LOADING, LoadSettings
from qdq.processes import Process

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

__all__ = ["calibrate", "describe"]

_STATISTICS = "Several machines"
_DEFAULT = CalibrationSettings()
_NO_ADJUSTMENTS = RangeAdjustments()


@command
def calibrate(
    model: Annotated[
        Path, typer.Option("--model", "-m", metavar="DIR", help="Hugging Face directory of the float model.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Quantized checkpoint to write.")],
    calib_data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Sample text: .txt (one sentence per line), .jsonl, .csv, .tsv, .parquet, SQuAD's .json, ... Use a "
            "few hundred samples like those of your application. The presets dynamic, weight-only-int8 and "
            "weight-only-int4 need none.",
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe",
            "-r",
            metavar="NAME|FILE",
            help="YAML file or preset that says which slots are quantized, and how. Presets: onnxruntime, openvino, "
            "tensorrt, qdqbert, linear, fp8, dynamic, weight-only-int8, weight-only-int4.",
        ),
    ] = "onnxruntime",
    settings: CalibrationSettings = _DEFAULT,
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help="Task whose head is loaded; by default that of config.json.")
    ] = None,
    text_column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Column or key of the text; by default the usual names are tried."),
    ] = None,
    text_pair_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column or key of the second text of each sample.")
    ] = None,
    loading: LoadSettings = DEFAULT_LOADING,
    recipe_changes: RecipeChanges = NO_CHANGES,
    refinement: RefinementChoice = AS_RECIPE_SAYS,
    adjustments: Annotated[RangeAdjustments, "Ranges after calibration"] = _NO_ADJUSTMENTS,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            metavar="",
            help="Continue an interrupted run of the same command from <output>.calibration, with the same result.",
        ),
    ] = False,
    add_statistics: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Add statistics that another run saved with --save-statistics, from other data but with the same "
            "model, recipe and calibrator. Repeatable.",
            rich_help_panel=_STATISTICS,
        ),
    ] = None,
    save_statistics: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Save the collected statistics for --add-statistics of another run.",
            rich_help_panel=_STATISTICS,
        ),
    ] = None,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,
) -> None:
    """Calibrate a model on sample text and write a quantized checkpoint.

    Example: qdq calibrate -m model/ -o quantized/ --calib-data sentences.txt
    """
    is_first = Process.of_torchrun().is_first
    session = Session(json=json and is_first, verbose=verbose, quiet=quiet or not is_first)
    from calibration.checkpoint import calibrate_checkpoint

    directory = opened(model, loading, seed=seed)
    choice = RecipeChoice(recipe=recipe, changes=recipe_changes, refinement=refinement)
    with session.progress("calibrating", total=1) as advance:
        written = calibrate_checkpoint(
            directory,
            output,
            calib_data,
            recipe=choice.recipe_for(directory, task),
            settings=replace(settings, seed=seed),
            adjustments=adjustments,
            task=task,
            text_column=text_column,
            text_pair_column=text_pair_column,
            resume=resume,
            add_statistics=add_statistics or (),
            save_statistics=save_statistics,
            progress=lambda stage, done, total: advance(done, stage, total),
            say=session.say,
        )
    if is_first:
        session.result(
            {"checkpoint": output, **written.to_dict()},
            f"{output}: {written.quantized} of {written.slots} slots quantized, recipe {written.recipe}",
            describe(written.calibration),
        )


def describe(calibration: Mapping[str, Any]) -> str:
    """Describe in a line how ranges were found. Other programs may have written the record, so nothing is certain."""
    method = calibration.get("method")
    if calibration.get("samples") == 0 or not calibration:
        return "no ranges from data: the recipe needs none"
    name = method.get("name") if isinstance(method, dict) else method
    settings = [f"{key} {value}" for key, value in method.items() if key != "name"] if isinstance(method, dict) else []
    shown = f"{name} ({', '.join(settings)})" if settings else str(name)
    if "samples" not in calibration:
        return f"ranges from {shown}"
    return f"ranges from {calibration['samples']} samples, {calibration.get('tokens')} tokens, method {shown}"
