"""``qdq calibrate``: from a float checkpoint and sample text to a quantized checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

__all__ = ["calibrate", "calibrate_into", "describe"]


@command
def calibrate(
    model: Annotated[
        Path, typer.Option("--model", "-m", metavar="DIR", help="Hugging Face directory of the float model.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="The quantized checkpoint to write.")],
    calib_data: Annotated[
        Path, typer.Option(metavar="FILE", help="Sample text: .txt (a sentence a line), .jsonl, .csv or .tsv.")
    ],
    recipe: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="A preset or a YAML file: which slots are quantized, and how.")
    ] = "onnxruntime",
    calibrator: Annotated[str, typer.Option(metavar="max|percentile", help="How a range is chosen.")] = "max",
    percentile: Annotated[
        float | None, typer.Option(metavar="P", help="For the calibrator percentile; 99.99 when not given.")
    ] = None,
    num_samples: Annotated[
        int, typer.Option(metavar="N", help="Samples drawn at random when there are more.", min=1)
    ] = 512,
    seq_len: Annotated[int, typer.Option(metavar="L", help="Longest sample in tokens; the rest is cut.", min=3)] = 128,
    batch_size: Annotated[int, typer.Option(metavar="B", help="Samples in a batch.", min=1)] = 8,
    include: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Quantize only modules that match; repeatable.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Keep modules that match in float; repeatable.")
    ] = None,
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
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,
) -> None:
    """Find ranges on sample text and write a quantized checkpoint.

    Example: qdq calibrate -m model/ -o quantized/ --calib-data sentences.txt
    """
    session = Session(json=json, verbose=verbose, quiet=quiet)
    document = calibrate_into(
        session,
        model=model,
        output=output,
        calib_data=calib_data,
        recipe=recipe,
        calibrator=calibrator,
        percentile=percentile,
        num_samples=num_samples,
        seq_len=seq_len,
        batch_size=batch_size,
        include=include or [],
        exclude=exclude or [],
        task=task,
        allow_missing=allow_missing or [],
        text_column=text_column,
        text_pair_column=text_pair_column,
        seed=seed,
    )
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
    calib_data: Path,
    recipe: str,
    calibrator: str = "max",
    percentile: float | None = None,
    num_samples: int | None = None,
    seq_len: int = 128,
    batch_size: int = 8,
    include: list[str] | None = None,
    exclude: list[str] | None = None,
    task: str | None = None,
    allow_missing: list[str] | None = None,
    text_column: str | None = None,
    text_pair_column: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """The work of ``qdq calibrate``; what is cheap to refuse is refused before anything is loaded or written."""
    import calibration
    from qdq import checkpoint
    from qdq.data.text import draw, read_samples
    from qdq.data.tokenize import encode_batches, load_tokenizer
    from qdq.errors import CalibrationError
    from qdq.models.huggingface import load_model, read_config
    from qdq.prepare import named_slots, quantize
    from qdq.recipe import load_recipe
    from qdq.storage import atomic_directory

    chosen = load_recipe(recipe).restrict(include=include or [], exclude=exclude or [])
    if percentile is None:
        method = calibration.method_named(calibrator)
    elif calibrator == "max":
        raise CalibrationError("--percentile goes with --calibrator percentile: max clips nothing")
    else:
        method = calibration.method_named(calibrator, percentile=percentile)
    config = read_config(model)
    tokenizer = load_tokenizer(model)
    samples = read_samples(calib_data, text_column=text_column, text_pair_column=text_pair_column)
    texts = draw(samples, num_samples, seed)
    with atomic_directory(output, kind="checkpoint") as folder:
        wrapped = load_model(model, task, allow_missing=allow_missing or [])
        quantize(wrapped, chosen)
        seq_len = min(seq_len, _longest(wrapped))
        batches = encode_batches(
            texts, tokenizer, batch_size=batch_size, seq_len=seq_len, pad_token_id=config.pad_token_id or 0
        )
        with session.progress("calibrating", total=-(-len(texts) // batch_size)) as advance:
            summary = calibration.calibrate(wrapped, batches, method=method, progress=advance)
        record = {**summary.to_dict(), "seq_len": seq_len, "seed": seed}
        checkpoint.write(wrapped, folder, recipe=chosen, calibration=record, source=model)
    slots = [quantizer.spec for _, quantizer in named_slots(wrapped)]
    return {
        "recipe": chosen.name,
        "slots": {"total": len(slots), "quantized": sum(spec is not None for spec in slots)},
        "calibration": record,
    }


def describe(calibration: Mapping[str, Any]) -> str:
    """A line about how the ranges were found; the record may be that of somebody else's program."""
    method = calibration.get("method")
    name = method.get("name") if isinstance(method, dict) else method
    settings = [f"{key} {value}" for key, value in method.items() if key != "name"] if isinstance(method, dict) else []
    shown = f"{name} ({', '.join(settings)})" if settings else str(name)
    return f"ranges from {calibration.get('samples')} samples, {calibration.get('tokens')} tokens, method {shown}"


def _longest(model: nn.Module) -> int:
    """The tokens for which the model has positions."""
    from qdq.models.embeddings import Embeddings

    tables = [module for module in model.modules() if isinstance(module, Embeddings)]
    return min(table.position.num_embeddings - table.first_position for table in tables)
