"""``qdq inspect``: what is in a checkpoint or in an ONNX file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command
from qdq.errors import CheckpointError

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["inspect"]


@command
def inspect(
    path: Annotated[Path, typer.Argument(help="A checkpoint, an exported directory, or an .onnx file.")],
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,  # noqa: ARG001 (nothing is random here)
) -> None:
    """Show what is quantized, and how: slots, specs and ranges of a checkpoint; what runs in int8 of an ONNX file.

    Example: qdq inspect quantized/
    """
    session = Session(json=json, verbose=verbose, quiet=quiet)
    from exporters.folder import MODEL_FILE

    if path.is_dir() and (path / MODEL_FILE).is_file():
        path = path / MODEL_FILE
    if path.is_file():
        _inspect_graph(session, path)
    elif (path / "config.json").is_file():
        _inspect_checkpoint(session, path)
    else:
        raise CheckpointError(f"{path}: neither a checkpoint (no config.json) nor an export (no {MODEL_FILE})")


def _inspect_checkpoint(session: Session, path: Path) -> None:
    from qdq.checkpoint import is_quantized, load, read_quantization
    from qdq.prepare import named_slots

    model = load(path)
    parameters = sum(p.numel() for p in model.parameters())
    document: dict[str, Any] = {
        "kind": "checkpoint",
        "model_type": model.config.model_type,
        "task": model.task,
        "parameters": parameters,
        "quantized": is_quantized(path),
    }
    head = f"{path}: {model.config.model_type}, {model.task}, {parameters / 1e6:.1f} M parameters"
    if not is_quantized(path):
        session.result(document, f"{head}, float")
        return
    record = read_quantization(path)
    table = Table(title="Quantized slots", title_justify="left")
    for column in ("slot", "spec", "scale", "zero point", "range"):
        table.add_column(column, justify="left" if column in ("slot", "spec") else "right")
    rows = []
    for slot, quantizer in named_slots(model):
        if quantizer.spec is None:
            continue
        scale, zero_point, range_ = quantizer.scale, quantizer.zero_point, quantizer.range
        scales = [float(scale.min()), float(scale.max())]
        zero_points = [int(zero_point.min()), int(zero_point.max())]
        bounds = None if range_ is None else [float(range_.lower), float(range_.upper)]
        name, spec = str(slot), str(quantizer.spec)
        rows.append({"slot": name, "spec": spec, "scale": scales, "zero_point": zero_points, "range": bounds})
        shown = "" if bounds is None else _span(bounds, ".3g")
        table.add_row(name, spec, _span(scales, ".3g"), _span(zero_points, "d"), shown)
    counts = Counter(str(row["spec"]) for row in rows)
    document |= {
        "recipe": record["recipe"]["name"],
        "calibration": record["calibration"],
        "counts": counts,
        "slots": rows,
    }
    calibration = record["calibration"]
    session.result(
        document,
        f"{head}, recipe {record['recipe']['name']}",
        f"ranges from {calibration.get('samples')} samples, {calibration.get('tokens')} tokens, "
        f"method {calibration.get('method')}",
        *(f"{count:4d} x {spec}" for spec, count in counts.most_common()),
        table,
    )


def _span(bounds: Sequence[float], form: str) -> str:
    low, high = bounds
    return f"{low:{form}}" if low == high else f"{low:{form}} .. {high:{form}}"


def _inspect_graph(session: Session, path: Path) -> None:
    from exporters.onnx.inspect import inspect_graph

    report = inspect_graph(path)
    products = Counter((product.kind, product.runs_in) for product in report.products)
    table = Table(title="Matrix products", title_justify="left")
    for column in ("kind", "in int8", "in float", "float ones"):
        table.add_column(column)
    for kind in ("linear", "attention"):
        in_float = [p.name for p in report.products if (p.kind, p.runs_in) == (kind, "float")]
        names = ", ".join(in_float[:3]) + (" ..." if len(in_float) > 3 else "")
        table.add_row(kind, str(products[kind, "int8"]), str(len(in_float)), names)
    operators = ", ".join(f"{count} {name}" for name, count in report.operators.items())
    sizes = ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in report.bytes_by_type.items())
    session.result(
        {"kind": "onnx", "path": path, "bytes": path.stat().st_size, **report.to_dict()},
        f"{path}: {path.stat().st_size / 1e6:.1f} MB, opsets {report.opsets}",
        table,
        f"stored: {sizes}",
        f"operators: {operators}",
    )
