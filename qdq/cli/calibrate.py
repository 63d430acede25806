"""``qdq calibrate``: from a float checkpoint and sample text to a quantized checkpoint."""

from __future__ import annotations

import os
from contextlib import contextmanager
from json import dumps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdq.cli.interruption import kept_beside
from qdq.cli.recipe_options import AS_RECIPE_SAYS, NO_CHANGES, RecipeChanges, RecipeChoice, RefinementChoice
from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from torch import nn

    from qdq.quantization.slot import Slot
    from qdq.recipes.plan import Plan

__all__ = ["calibrate", "calibrate_into", "describe"]

_STATISTICS = "Several machines"


@command
def calibrate(
    model: Annotated[
        Path, typer.Option("--model", "-m", metavar="DIR", help="Hugging Face directory of the float model.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The quantized checkpoint to write.")],
    calib_data: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Sample text: .txt (a sentence a line), .jsonl, .csv, .tsv, .parquet, SQuAD's .json, ...; best a few "
            "hundred like those to come. Not needed for recipes without static activations: dynamic, "
            "weight-only-int8, weight-only-int4.",
        ),
    ] = None,
    recipe: Annotated[
        str,
        typer.Option(
            "--recipe", "-r", metavar="NAME|FILE", help="A preset or a YAML file: which slots are quantized, and how."
        ),
    ] = "onnxruntime",
    calibrator: Annotated[
        str,
        typer.Option(
            metavar="max|percentile|mse|entropy|auto",
            help="How a range is chosen; auto: for each slot the way with the least noise.",
        ),
    ] = "max",
    percentile: Annotated[
        float | None, typer.Option(metavar="P", help="For the calibrator percentile; 99.99 when not given.")
    ] = None,
    num_samples: Annotated[
        int, typer.Option(metavar="N", help="Samples drawn at random when there are more.", min=1)
    ] = 512,
    seq_len: Annotated[int, typer.Option(metavar="L", help="Longest sample in tokens; the rest is cut.", min=3)] = 128,
    batch_size: Annotated[int, typer.Option(metavar="B", help="Samples in a batch.", min=1)] = 8,
    task: Annotated[
        str | None, typer.Option(metavar="TASK", help="The head to load; that of config.json when not given.")
    ] = None,
    allow_missing: Annotated[
        list[str] | None,
        typer.Option(metavar="head|pooler", help="Begin with a new one if the checkpoint has none; repeatable."),
    ] = None,
    text_column: Annotated[str | None, typer.Option(metavar="NAME", help="Column or key of the text.")] = None,
    text_pair_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column or key of the second text.")
    ] = None,
    recipe_changes: RecipeChanges = NO_CHANGES,
    refinement: RefinementChoice = AS_RECIPE_SAYS,
    fuse_qkv: Annotated[
        bool,
        typer.Option(
            "--fuse-qkv",
            metavar="",
            help="One range for query, key and value in attention's products: the largest. Weights too, if per tensor.",
            rich_help_panel="Ranges after calibration",
        ),
    ] = False,
    clip_gelu: Annotated[
        float | None,
        typer.Option(
            metavar="N",
            help="At most N for the range of what the activation of each feed-forward puts out; 10 is usual.",
            rich_help_panel="Ranges after calibration",
        ),
    ] = None,
    recalibrate_weights: Annotated[
        bool,
        typer.Option(
            "--recalibrate-weights",
            metavar="",
            help="Weight ranges anew from the weights; a calibration does that anyhow.",
            rich_help_panel="Ranges after calibration",
        ),
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            metavar="",
            help="Go on where the same command was interrupted, with the same result; what it had collected lies in "
            "<output>.calibration.",
        ),
    ] = False,
    add_statistics: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="What another run of the same model, recipe and calibrator saved, on other data; repeatable.",
            rich_help_panel=_STATISTICS,
        ),
    ] = None,
    save_statistics: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Keep the statistics, for other runs to add.", rich_help_panel=_STATISTICS),
    ] = None,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,
) -> None:
    """Find ranges on sample text and write a quantized checkpoint.

    Example: qdq calibrate -m model/ -o quantized/ --calib-data sentences.txt
    """
    choice = RecipeChoice(
        recipe=recipe,
        changes=recipe_changes,
        refinement=refinement,
    )
    is_first = _is_first()
    session = Session(json=json and is_first, verbose=verbose, quiet=quiet or not is_first)
    document = calibrate_into(
        session,
        model=model,
        output=output,
        calib_data=calib_data,
        choice=choice,
        calibrator=calibrator,
        percentile=percentile,
        num_samples=num_samples,
        seq_len=seq_len,
        batch_size=batch_size,
        task=task,
        allow_missing=allow_missing or [],
        text_column=text_column,
        text_pair_column=text_pair_column,
        seed=seed,
        fuse_qkv=fuse_qkv,
        clip_gelu=clip_gelu,
        recalibrate_weights=recalibrate_weights,
        resume=resume,
        add_statistics=add_statistics or [],
        save_statistics=save_statistics,
    )
    if not is_first:
        return
    slots, calibration = document["slots"], document["calibration"]
    session.result(
        {"checkpoint": output, **document},
        f"{output}: {slots['quantized']} of {slots['total']} slots quantized, recipe {document['recipe']}",
        describe(calibration),
    )


def calibrate_into(
    session: Session,
    *,
    model: Path,
    output: Path,
    calib_data: Path | None,
    choice: RecipeChoice,
    calibrator: str = "max",
    percentile: float | None = None,
    num_samples: int | None = None,
    seq_len: int = 128,
    batch_size: int = 8,
    task: str | None = None,
    allow_missing: list[str] | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    seed: int = 0,
    fuse_qkv: bool = False,
    clip_gelu: float | None = None,
    recalibrate_weights: bool = False,
    resume: bool | None = None,
    add_statistics: Sequence[Path] = (),
    save_statistics: Path | None = None,
) -> dict[str, Any]:
    """The work of ``qdq calibrate``; what is cheap to refuse is refused before anything is loaded or written.

    With ``resume`` None nothing is kept of a calibration that is interrupted.
    Under torchrun every process comes to the same result, and the one with rank 0 writes it.
    """
    import calibration
    from calibration.digests import text_digest
    from calibration.distributed import part_of_process
    from calibration.methods.adjustments import check_bound
    from calibration.statistics.saved import CalibrationState
    from qdq import checkpoint
    from qdq.data.source import draw
    from qdq.data.text import encode_batches, read_samples
    from qdq.data.tokenizer import load_tokenizer
    from qdq.errors import CalibrationError
    from qdq.models.huggingface import load_model, read_config
    from qdq.quantization.quantizer import Mode, set_mode
    from qdq.quantization.wrap import named_slots
    from qdq.recipes.apply import quantize
    from qdq.recipes.plan import skeleton

    if percentile is None:
        method = calibration.method_named(calibrator)
    else:
        method = calibration.method_named(calibrator, percentile=percentile)
        if not isinstance(method, calibration.Percentile):
            raise CalibrationError(f"--percentile goes with --calibrator percentile, {calibrator} has no use for it")
    if clip_gelu is not None:
        check_bound(clip_gelu)
    identity: dict[str, str] = {}
    config = read_config(model)
    plan = choice.plan(skeleton(config, task))
    if (add_statistics or save_statistics) and plan.recipe.refinement.transforms:
        raise CalibrationError(
            "smoothing and shift follow from the data of each run, so that its statistics are no other's: give "
            "--smoothing off --no-shift with --add-statistics and --save-statistics"
        )
    if calib_data is None:
        resume = None
        _check_needs_no_data(plan)
        session.say(f"recipe {plan.recipe.name} needs no calibration data")
        if plan.recipe.refinement:
            settings = ", ".join(plan.recipe.refinement.to_dict())
            session.say(f"warning: left out for want of sample text (--calib-data): {settings}")
    else:
        tokenizer = load_tokenizer(model)
        samples = read_samples(calib_data, text_column=text_column, text_pair_column=text_pair_column)
        texts = draw(samples, num_samples, seed)
        statistics = [CalibrationState.load(path) for path in add_statistics]
        identity = {
            "recipe": f"{plan.recipe.name} {text_digest([plan.recipe.to_dict()])}",
            "data": f"{len(texts)} samples {text_digest(texts)}",
            "method": dumps(method.to_dict()),
            "seed": str(seed),
            "seq_len": str(seq_len),
            "batch_size": str(batch_size),
        }
    with (
        part_of_process() as part,
        kept_beside(session, output, identity, part, resume=resume) as resume_file,
        _only_first(part.rank, output) as folder,
    ):
        wrapped = load_model(model, task, allow_missing=allow_missing or [])
        quantize(wrapped, plan.recipe)
        adjustments: list[dict[str, Any]] = []

        def adjust() -> None:
            adjustments.extend(
                _adjust(
                    session, wrapped, fuse_qkv=fuse_qkv, clip_gelu=clip_gelu, recalibrate_weights=recalibrate_weights
                )
            )

        if calib_data is None:
            set_mode(wrapped, Mode.QUANTIZE)
            adjust()
            record = {**_NO_DATA, "seed": seed}
        else:
            seq_len = min(seq_len, config.max_length)
            count = -(-len(texts) // batch_size)
            with session.progress("calibrating", total=count) as advance:
                summary = calibration.calibrate_and_refine(
                    wrapped,
                    lambda: encode_batches(
                        texts, tokenizer, batch_size=batch_size, seq_len=seq_len, pad_token_id=config.pad_token_id or 0
                    ),
                    plan.recipe.refinement,
                    method=method,
                    part=part,
                    adjust=adjust,
                    resume_file=resume_file,
                    stage=lambda name: _advance_in(name, advance, count),
                    statistics=statistics,
                    keep=save_statistics,
                )
            record = {**summary.to_dict(), "seq_len": seq_len, "seed": seed}
            for warning in summary.warnings:
                session.say(f"warning: {warning}")
        if adjustments:
            record["adjustments"] = adjustments
        if folder is not None:
            checkpoint.write(wrapped, folder, recipe=plan.recipe, calibration=record, source=model)
    slots = [quantizer.spec for _, quantizer in named_slots(wrapped)]
    return {
        "recipe": plan.recipe.name,
        "slots": {"total": len(slots), "quantized": sum(spec is not None for spec in slots)},
        "calibration": record,
    }


def _advance_in(stage: str, advance: Callable[..., None], batches: int) -> Callable[..., None]:
    """What a stage of the calibration reports its progress to."""
    match stage:
        case "channels":
            return lambda done: advance(done, "looking at channels", batches)
        case "ranges":
            return lambda done: advance(done, "calibrating", batches)
    return lambda done, layers: advance(done, "refining layers", layers)


def _is_first() -> bool:
    """Whether this process is to be heard: of those that torchrun started only one is."""
    return "TORCHELASTIC_RUN_ID" not in os.environ or os.environ.get("RANK", "0") == "0"


@contextmanager
def _only_first(rank: int, output: Path) -> Iterator[Path | None]:
    """The folder to write into, for the process with rank 0; None for the others."""
    from qdq.storage import atomic_directory

    if rank:
        yield None
        return
    with atomic_directory(output, kind="checkpoint") as folder:
        yield folder


# What a calibration without data has to say for itself.
_NO_DATA = {"method": {"name": "none"}, "batches": 0, "samples": 0, "tokens": 0, "data_sha256": None, "seq_len": None}


def _check_needs_no_data(plan: Plan) -> None:
    from qdq.errors import DataError
    from qdq.recipes.plan import needing_data
    from qdq.recipes.recipe import load_recipe, presets

    if waiting := plan.needing_data:
        free = [name for name in presets() if not needing_data(load_recipe(name).assign(plan.specs))]
        raise DataError(
            f"recipe {plan.recipe.name!r} needs sample text for the ranges of {len(waiting)} slots ({waiting[0]}, "
            f"...): give --calib-data FILE, or a recipe that needs none: {', '.join(free)}"
        )


def _adjust(
    session: Session, model: nn.Module, *, fuse_qkv: bool, clip_gelu: float | None, recalibrate_weights: bool
) -> list[dict[str, Any]]:
    """Change ranges as asked; the record of it."""
    from calibration.methods import adjustments as adjust
    from qdq.quantization.wrap import named_slots

    done: list[tuple[dict[str, Any], list[Slot]]] = []
    if recalibrate_weights:
        done.append(({"name": "recalibrate-weights"}, adjust.recalibrate_weights(model)))
    if fuse_qkv:
        done.append(({"name": "fuse-qkv"}, adjust.fuse_qkv(model)))
    if clip_gelu is not None:
        done.append(({"name": "clip-gelu", "bound": clip_gelu}, adjust.clip_gelu(model, clip_gelu)))
    specs = {slot: quantizer.spec for slot, quantizer in named_slots(model)}
    record = []
    for what, changed in done:
        count = sum(spec is not None and not spec.dynamic for spec in map(specs.__getitem__, changed))
        record.append({**what, "slots": count})
        if not count:
            session.say(f"--{what['name']} had no effect: nothing that it is for has a range in this recipe")
    return record


def describe(calibration: Mapping[str, Any]) -> str:
    """A line about how the ranges were found; the record may be that of somebody else's program."""
    method = calibration.get("method")
    if calibration.get("samples") == 0 or not calibration:
        return "no ranges from data: the recipe needs none"
    name = method.get("name") if isinstance(method, dict) else method
    settings = [f"{key} {value}" for key, value in method.items() if key != "name"] if isinstance(method, dict) else []
    shown = f"{name} ({', '.join(settings)})" if settings else str(name)
    if "samples" not in calibration:
        return f"ranges from {shown}"
    return f"ranges from {calibration['samples']} samples, {calibration.get('tokens')} tokens, method {shown}"
