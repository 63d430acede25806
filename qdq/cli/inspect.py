"""``qdq inspect``: show what a checkpoint, an ONNX file or an engine holds, and what a recipe does to a model."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdq.cli.build import shown_report
from qdq.cli.calibrate import describe
from qdq.cli.loading import opened
from qdq.cli.plan import described, planned, shown
from qdq.cli.profile import ProfileOption, RuntimeOption, ShapeOption, ThreadsOption, profiled
from qdq.cli.recipe_options import NO_CHANGES, RecipeChanges, RecipeChoice
from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command
from qdq.cli.tables import new_table, span
from qdq.errors import CheckpointError, ConfigError
from qdq.load_settings import DEFAULT_LOADING, LoadSettings

if TYPE_CHECKING:
    from rich.table import Table

    from exporters.onnx.inspect import GraphReport
    from qdq.quantization.quantizer import Quantizer
    from qdq.source import ModelDirectory

__all__ = ["inspect"]


@command
def inspect(
    path: Annotated[
        Path,
        typer.Argument(metavar="PATH", help="Checkpoint, config.json, exported directory, .onnx file or engine."),
    ],
    recipe: Annotated[
        str | None,
        typer.Option(
            "--recipe",
            "-r",
            metavar="NAME|FILE",
            help="Show which slots this preset or YAML file would quantize. Only config.json is read.",
            rich_help_panel="Recipe",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            metavar="TASK",
            help="Task whose head is shown, with --recipe or for a config.json; by default that of config.json.",
        ),
    ] = None,
    recipe_changes: RecipeChanges = NO_CHANGES,
    profile: ProfileOption = False,
    runtime: RuntimeOption = None,
    shape: ShapeOption = None,
    threads: ThreadsOption = 2,
    loading: LoadSettings = DEFAULT_LOADING,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,
) -> None:
    """Show what is quantized in a checkpoint, an ONNX file or an engine, and how.

    A checkpoint is shown as its slots with their ranges, an ONNX file as its int8 products. With --recipe, show what
    that recipe would quantize in a model, without reading its weights. With --profile, run the ONNX file and show what
    the runtime computes in int8, and what keeps the rest in float.

    Examples: qdq inspect quantized/; qdq inspect model/ -r tensorrt
    """
    session = Session(json=json, verbose=verbose, quiet=quiet)
    choice = RecipeChoice(
        recipe=recipe or "onnxruntime",  # what qdq calibrate takes
        changes=recipe_changes,
    )
    wants_plan = recipe is not None or bool(recipe_changes)
    if not path.exists():
        raise CheckpointError(f"{path}: no such file or directory")
    from qdq.sentence.modules_file import transformer_folder

    path = transformer_folder(path) if path.is_dir() else path
    is_config = path.is_file() and path.suffix == ".json"
    if is_config or (wants_plan and path.is_dir() and (path / "config.json").is_file()):
        given = path if is_config else opened(path, loading, seed=seed)
        _inspect_plan(session, given, choice if wants_plan else None, task)
        return
    if wants_plan:
        raise CheckpointError(f"{path}: a recipe is for a model, which is a directory with a config.json, or that file")
    if task is not None:
        raise ConfigError("--task goes with --recipe or a config.json: anything else has its own")
    from exporters.tensorrt.plan_metadata import is_plan

    if is_plan(path):
        _inspect_engine(session, path, full=verbose > 0)
        return
    from qdq.source import MODEL_FILE, ModelDirectory

    if path.is_dir() and ModelDirectory.of(path).is_export:
        path = ModelDirectory.of(path).model_file
    if path.is_file():
        run = {"runtime": runtime, "shape": shape, "threads": threads, "full": verbose > 0} if profile else None
        _inspect_graph(session, path, run)
    elif profile:
        raise CheckpointError(f"{path}: --profile runs an exported directory or an .onnx file, and this is neither")
    elif (path / "config.json").is_file():
        _inspect_checkpoint(session, opened(path, loading, seed=seed))
    else:
        from qdq.models.folder_diagnosis import with_diagnosis

        missing = f"{path}: neither a checkpoint (no config.json) nor an export (no {MODEL_FILE})"
        raise CheckpointError(with_diagnosis(missing, path))


def _inspect_engine(session: Session, path: Path, *, full: bool) -> None:
    from exporters.tensorrt.plan_metadata import read_metadata

    record = read_metadata(path)
    report, kernels = record.pop("report"), record.pop("layers")
    table = new_table("kernel", "kind", "in", "stored", "out", words=5)
    for kernel in kernels if full else ():
        types = (", ".join(dict.fromkeys(part)) for part in (kernel.inputs, kernel.constants, kernel.outputs))
        table.add_row(kernel.name, kernel.kind, *types)
    session.result(
        {
            "kind": "engine",
            "path": path,
            **record,
            "report": report.to_dict(),
            "layers": [kernel.to_dict() for kernel in kernels],
        },
        f"{path}: {record['plan_bytes'] / 1e6:.1f} MB, {record['backend']}",
        "",
        *shown_report(report),
        *(["", table] if full else ["-v shows all kernels"]),
    )


def _inspect_plan(
    session: Session, given: Path | ModelDirectory, choice: RecipeChoice | None, task: str | None
) -> None:
    model, plan = planned(given, choice, task)
    document = {"kind": "plan" if plan else "config", "path": str(given), **model}
    head = f"{given}: {model['model_type']}, {model['task']}, {model['parameters'] / 1e6:.1f} M parameters"
    if plan is None:
        session.result(document, f"{head}; --recipe NAME shows what a recipe makes of it")
        return
    found = described(plan)
    session.result(document | found, f"{head}, recipe {found['recipe']}", *shown(found))


def _inspect_checkpoint(session: Session, directory: ModelDirectory) -> None:
    from qdq.checkpoint import load
    from qdq.quantization.wrap import named_slots

    path, model = directory.path, load(directory)
    parameters = sum(p.numel() for p in model.parameters())
    document: dict[str, Any] = {
        "kind": "checkpoint",
        "path": path,
        "model_type": model.config.model_type,
        "task": model.task,
        "parameters": parameters,
        "quantized": directory.is_quantized,
    }
    head = f"{path}: {model.config.model_type}, {model.task}, {parameters / 1e6:.1f} M parameters"
    if not directory.is_quantized:
        session.result(document, f"{head}, float")
        return
    recipe, calibration, origin = None, None, "with the ranges of pytorch-quantization"
    record = directory.quantization
    if record is not None:  # None: a QDQBERT that another program wrote
        recipe, calibration = record["recipe"].get("name"), record["calibration"]
        origin = f"recipe {recipe}"
    rows = [{"slot": str(slot), **_figures(q)} for slot, q in named_slots(model) if q.spec is not None]
    counts = Counter(row["spec"] for row in rows)
    document |= {"recipe": recipe, "calibration": calibration, "counts": counts, "slots": rows}
    letters = {spec: chr(ord("A") + index) for index, (spec, _) in enumerate(counts.most_common())}
    session.result(
        document,
        f"{head}, {origin}",
        *([] if calibration is None else [describe(calibration)]),
        "",
        "specs",
        *(f"  {letters[spec]}  {count:4d} x {spec}" for spec, count in counts.most_common()),
        "",
        _slots_table(rows, letters),
    )


def _figures(quantizer: Quantizer) -> dict[str, Any]:
    """Return the spec of a slot, and the smallest and largest of its scales, zero points and values."""
    range_ = quantizer.range
    bounds = None if range_ is None else [float(range_.lower.min()), float(range_.upper.max())]
    if quantizer.spec is None or quantizer.spec.dynamic:  # found anew in every call
        return {"spec": str(quantizer.spec), "scale": None, "zero_point": None, "range": bounds}
    return {
        "spec": str(quantizer.spec),
        "scale": [float(quantizer.scale.min()), float(quantizer.scale.max())],
        "zero_point": [int(quantizer.zero_point.min()), int(quantizer.zero_point.max())],
        "range": bounds,
    }


def _slots_table(rows: list[dict[str, Any]], letters: dict[str, str]) -> Table:
    table = new_table("slot", "spec", "scale", "zero\npoint", "range", words=2)
    for row in rows:
        scale, zero_point, bounds = (
            "" if row[key] is None else span(row[key], form)
            for key, form in (("scale", ".2g"), ("zero_point", "d"), ("range", ".2g"))
        )
        table.add_row(row["slot"], letters[row["spec"]], scale, zero_point, bounds)
    return table


def _inspect_graph(session: Session, path: Path, run: dict[str, Any] | None) -> None:
    from exporters.onnx.inspect import inspect_graph, model_bytes

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
    measured, tables = profiled(path, report, **run) if run else (None, [])
    session.result(
        {"kind": "onnx", "path": path, "bytes": size, **report.to_dict(), **({"profile": measured} if run else {})},
        f"{path}: {size / 1e6:.1f} MB, opsets {opsets}",
        "",
        table,
        "",
        *in_float,
        *_for_isa(report),
        f"stored: {stored}",
        f"operators: {operators}",
        *tables,
    )


def _for_isa(report: GraphReport) -> list[str]:
    """Return for which CPUs the integer products are written, and a warning about other CPUs."""
    if report.isa is None:
        return []
    from exporters.onnx.isa import ISAS
    from exporters.onnx.saturation import saturation_note

    cpus = {"any": "every CPU"}.get(report.isa, report.isa)
    return [
        f"integer products for: {cpus}",
        *(saturation_note(report.pair_sums, ISAS[report.isa]) if report.isa in ISAS else []),
    ]
