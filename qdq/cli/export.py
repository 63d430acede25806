"""``qdq export``: from a checkpoint to an ONNX model for a target."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command

__all__ = ["export", "model_bytes"]


@command
def export(
    model: Annotated[Path, typer.Option("--model", "-m", metavar="DIR", help="Directory of the checkpoint.")],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="DIR", help="Directory to write.")],
    target: Annotated[str | None, typer.Option(metavar="NAME", help="onnxruntime, openvino or tensorrt.")] = None,
    in_float: Annotated[bool, typer.Option("--float", metavar="", help="Export the float model.")] = False,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME|FILE", help="Change to this preset or YAML file first, with the same ranges."),
    ] = None,
    opset: Annotated[int, typer.Option(metavar="N", help="ONNX operator set, 18 to 25.")] = 21,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,  # noqa: ARG001 (an export has nothing random)
) -> None:
    """Write an ONNX model for a target, int8 weights inside.

    Example: qdq export -m quantized/ -o exported/ --target onnxruntime
    """
    from qdq.errors import ExportError

    session = Session(json=json, verbose=verbose, quiet=quiet)
    if in_float == (target is not None):
        raise ExportError("give either --target onnxruntime|tensorrt|openvino, or --float")
    if in_float and recipe is not None:
        raise ExportError("--recipe goes with --target: a model exported with --float has no quantizers")
    from exporters import folder

    with session.progress(f"exporting for {target or 'float'}"):
        exported = folder.export(model, output, target=target, recipe=recipe, opset=opset)
    for note in exported.notes:
        session.say(note)
    size = model_bytes(output / folder.MODEL_FILE)
    session.result(
        {"output": output, "bytes": size, **exported.to_dict()},
        f"{output / folder.MODEL_FILE}: {size / 1e6:.1f} MB, opset {exported.opset}, "
        f"{', '.join(exported.signature.inputs)} -> {', '.join(exported.signature.outputs)}",
    )


def model_bytes(path: Path) -> int:
    """The size of an ONNX file together with the weights that a large one keeps beside it."""
    beside = path.with_name(f"{path.name}.data")
    return path.stat().st_size + (beside.stat().st_size if beside.is_file() else 0)
