"""``qdq inspect``: what is in a checkpoint or in an ONNX file."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdq.cli.calibrate import describe
from qdq.cli.export import model_bytes
from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command
from qdq.cli.tables import new_table, span
from qdq.errors import CheckpointError

if TYPE_CHECKING:
    from rich.table import Table

    from qdq.quantizer import Quantizer

__all__ = ["inspect"]


@command
def inspect(
    path: Annotated[
        Path, typer.Argument(metavar="PATH", help="A checkpoint, an exported directory, or an .onnx file.")
    ],
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

    if not path.exists():
        raise CheckpointError(f"{path}: no such file or directory")
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
        "path": path,
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
    recipe, calibration = record["recipe"].get("name"), record["calibration"]
    rows = [{"slot": str(slot), **_figures(q)} for slot, q in named_slots(model) if q.spec is not None]
    counts = Counter(row["spec"] for row in rows)
    document |= {"recipe": recipe, "calibration": calibration, "counts": counts, "slots": rows}
    letters = {spec: chr(ord("A") + index) for index, (spec, _) in enumerate(counts.most_common())}
    session.result(
        document,
        f"{head}, recipe {recipe}",
        describe(calibration),
        "",
        "specs",
        *(f"  {letters[spec]}  {count:4d} x {spec}" for spec, count in counts.most_common()),
        "",
        _slots_table(rows, letters),
    )


def _figures(quantizer: Quantizer) -> dict[str, Any]:
    """Spec, and the least and greatest scale, zero point and value of one slot; per axis there are many."""
    range_ = quantizer.range
    return {
        "spec": str(quantizer.spec),
        "scale": [float(quantizer.scale.min()), float(quantizer.scale.max())],
        "zero_point": [int(quantizer.zero_point.min()), int(quantizer.zero_point.max())],
        "range": None if range_ is None else [float(range_.lower.min()), float(range_.upper.max())],
    }


def _slots_table(rows: list[dict[str, Any]], letters: dict[str, str]) -> Table:
    table = new_table("slot", "spec", "scale", "zero\npoint", "range", words=2)
    for row in rows:
        bounds = "" if row["range"] is None else span(row["range"], ".2g")
        scale, zero_point = span(row["scale"], ".2g"), span(row["zero_point"], "d")
        table.add_row(row["slot"], letters[row["spec"]], scale, zero_point, bounds)
    return table


def _inspect_graph(session: Session, path: Path) -> None:
    from exporters.onnx.inspect import inspect_graph

    report = inspect_graph(path)
    products = Counter((product.kind, product.runs_in) for product in report.products)
    table = new_table("matrix products", "in int8", "in float")
    in_float = []
    for kind in ("linear", "attention"):
        table.add_row(kind, str(products[kind, "int8"]), str(products[kind, "float"]))
        names = [product.name for product in report.products if (product.kind, product.runs_in) == (kind, "float")]
        if names:
            in_float.append(f"{kind} in float: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}")
    size = model_bytes(path)
    opsets = ", ".join(f"{domain} {version}" for domain, version in report.opsets.items())
    operators = ", ".join(f"{count} {name}" for name, count in report.operators.items())
    stored = ", ".join(f"{name} {stored / 1e6:.1f} MB" for name, stored in report.bytes_by_type.items())
    session.result(
        {"kind": "onnx", "path": path, "bytes": size, **report.to_dict()},
        f"{path}: {size / 1e6:.1f} MB, opsets {opsets}",
        "",
        table,
        "",
        *in_float,
        f"stored: {stored}",
        f"operators: {operators}",
    )
