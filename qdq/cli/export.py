"""``qdq export``: export a checkpoint to ONNX for a target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdq.cli.loading import opened
from qdq.cli.profile import parse_shape
from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command
from qdq.cli.tables import new_table
from qdq.load_settings import DEFAULT_LOADING, LoadSettings

if TYPE_CHECKING:
    from rich.table import Table

    from exporters.tune import TuningResult
    from qdq.source import ModelDirectory

__all__ = ["export"]


@command
def export(
    model: Annotated[
        Path, typer.Option("--model", "-m", metavar="DIR", help="Checkpoint to export; a quantized one for --target.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Directory to write.")],
    target: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="Runtime to export for: onnxruntime, openvino or tensorrt. Required without --float."
        ),
    ] = None,
    in_float: Annotated[
        bool, typer.Option("--float", metavar="", help="Export the float model, without quantizers.")
    ] = False,
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            metavar="NAME|FILE",
            help="Preset or YAML file to export with, using the ranges of the checkpoint; by default the checkpoint's "
            "own recipe, or the preset of the target if the target cannot run that.",
        ),
    ] = None,
    opset: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="ONNX operator set, from 18 to 25. The default is 23 for onnxruntime, which needs ONNX "
            "Runtime 1.24 or newer, and 21 otherwise.",
        ),
    ] = None,
    isa: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="With --target onnxruntime: instruction set of the CPU to export for: avx2, avx512, vnni or arm; auto "
            "detects that of this machine; any is exact on every CPU.",
        ),
    ] = "any",
    dtype: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Floating-point type of everything that is not quantized: fp32, fp16 or bf16.",
            rich_help_panel="Export interface",
        ),
    ] = "fp32",
    pooling: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Return one vector per text, pooled by mean, cls, max, mean_sqrt_len_tokens, weightedmean or "
            "lasttoken; auto does what the model's modules.json says, scaling to length 1 included.",
            rich_help_panel="Export interface",
        ),
    ] = None,
    normalize: Annotated[
        bool,
        typer.Option(
            "--normalize",
            metavar="",
            help="With --pooling: scale the vectors to length 1.",
            rich_help_panel="Export interface",
        ),
    ] = False,
    softmax: Annotated[
        bool,
        typer.Option(
            "--softmax", metavar="", help="Return probabilities instead of logits.", rich_help_panel="Export interface"
        ),
    ] = False,
    argmax: Annotated[
        bool,
        typer.Option(
            "--argmax",
            metavar="",
            help="Return the index of the best label instead of logits; with --softmax, return both.",
            rich_help_panel="Export interface",
        ),
    ] = False,
    no_token_type_ids: Annotated[
        bool,
        typer.Option(
            "--no-token-type-ids",
            metavar="",
            help="Leave out the input token_type_ids; all tokens have type 0.",
            rich_help_panel="Export interface",
        ),
    ] = False,
    int32_ids: Annotated[
        bool,
        typer.Option(
            "--int32-ids",
            metavar="",
            help="Accept ids and masks in int32 instead of int64.",
            rich_help_panel="Export interface",
        ),
    ] = False,
    inputs_embeds: Annotated[
        bool,
        typer.Option(
            "--inputs-embeds",
            metavar="",
            help="Accept inputs_embeds, embedded tokens, instead of input_ids.",
            rich_help_panel="Export interface",
        ),
    ] = False,
    cache: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Key-value cache of a decoder: first returns the cache, step also accepts one.",
            rich_help_panel="Export interface",
        ),
    ] = None,
    tune: Annotated[
        bool,
        typer.Option(
            "--tune",
            metavar="",
            help="Time static against dynamic ranges on this machine and export the faster one that reaches "
            "--min-cosine. Needs --target onnxruntime.",
            rich_help_panel="Tune",
        ),
    ] = False,
    min_cosine: Annotated[
        float,
        typer.Option(
            metavar="C",
            help="Smallest acceptable cosine to the float model.",
            rich_help_panel="Tune",
        ),
    ] = 0.99,
    shape: Annotated[
        str,
        typer.Option("--shape", metavar="BxL", help="Batch size and length in tokens to time.", rich_help_panel="Tune"),
    ] = "8x128",
    threads: Annotated[
        int, typer.Option(metavar="N", help="Number of threads to time with.", min=1, rich_help_panel="Tune")
    ] = 2,
    rounds: Annotated[
        int,
        typer.Option(
            metavar="N", help="Number of timing rounds; the files take turns in each.", min=1, rich_help_panel="Tune"
        ),
    ] = 5,
    loading: LoadSettings = DEFAULT_LOADING,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,
) -> None:
    """Export a checkpoint to an ONNX model for a target, with its weights stored in int8.

    Example: qdq export -m quantized/ -o exported/ --target onnxruntime
    """
    from qdq.errors import ExportError

    session = Session(json=json, verbose=verbose, quiet=quiet)
    if in_float == (target is not None):
        raise ExportError("give either --target onnxruntime|tensorrt|openvino, or --float")
    if in_float and recipe is not None:
        raise ExportError("--recipe goes with --target: a model exported with --float has no quantizers")
    from exporters import directory
    from exporters.interface import CACHES, ExportInterface, with_pooling_of
    from exporters.onnx.inspect import model_bytes
    from qdq.source import MODEL_FILE, POOLINGS

    for option, value, known in (("--pooling", pooling, ("auto", *POOLINGS)), ("--cache", cache, CACHES)):
        if value is not None and value not in known:
            raise ExportError(f"{option} {value}: it must be one of {', '.join(known)}")
    source = opened(model, loading, seed=seed)
    interface = ExportInterface(
        pooling=None if pooling == "auto" else pooling,  # type: ignore[arg-type]
        normalize=normalize,
        softmax=softmax,
        argmax=argmax,
        token_type_ids=not no_token_type_ids,
        int32_ids=int32_ids,
        inputs_embeds=inputs_embeds,
        cache=cache,  # type: ignore[arg-type]
        dtype=dtype,  # type: ignore[arg-type]
    )
    if pooling == "auto":
        interface = with_pooling_of(source, interface)
    tuning = None
    if tune:
        if target != "onnxruntime":
            raise ExportError("--tune goes with --target onnxruntime: it chooses between static and dynamic ranges")
        tuning = _tuned(
            session,
            source,
            shape=shape,
            min_cosine=min_cosine,
            threads=threads,
            rounds=rounds,
            recipe=recipe,
            opset=opset,
            interface=interface,
            isa=isa,
        )
        recipe = tuning.recipe
    with session.progress(f"exporting for {target or 'float'}"):
        exported = directory.export(
            source,
            output,
            target=target,
            recipe=recipe,
            opset=opset,
            interface=interface,
            isa=isa,
            tuning=None if tuning is None else tuning.to_dict(),
        )
    for note in exported.notes:
        session.say(note)
    size = model_bytes(output / MODEL_FILE)
    session.result(
        {
            "output": output,
            "bytes": size,
            **exported.to_dict(),
            **({"tuning": tuning.to_dict()} if tuning else {}),
        },
        *([] if tuning is None else _choices(tuning)),
        f"{output / MODEL_FILE}: {size / 1e6:.1f} MB, opset {exported.opset}, "
        f"{', '.join(exported.signature.input_names)} -> {', '.join(exported.signature.outputs)}",
    )


def _tuned(session: Session, model: ModelDirectory, *, shape: str, **options: Any) -> TuningResult:
    from exporters.benchmark import Shape
    from exporters.tune import tune

    rows, tokens = parse_shape(shape)
    with session.progress("tuning", total=1) as advance:
        return tune(model, shape=Shape(rows, tokens), progress=lambda what: advance(0, what), **options)


def _choices(tuning: TuningResult) -> list[Table | str]:
    table = new_table("ranges", "median\nms", "speed-up", "cosine\nto float")
    for row in tuning.rows:
        if row.median_s is None or row.speedup is None or row.cosine is None:
            table.add_row(row.name, "-", "-", "-")
        else:
            table.add_row(row.name, f"{1e3 * row.median_s:.2f}", f"{row.speedup:.2f}x", f"{row.cosine:.4f}")
    refused = [f"{row.name} is not possible: {row.refused}" for row in tuning.rows if row.refused]
    return [table, *refused, f"chosen: {tuning.chosen}, {tuning.why}", ""]
