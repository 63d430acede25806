"""``qdq build``: build a TensorRT engine from an exported directory, and show what runs in int8."""

from __future__ import annotations

import json as json_library
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from exporters.tensorrt.build_options import BuildOptions
from qdq.cli.engine_shapes import MaxShapesOption, MinShapesOption, OptShapesOption, chosen_profiles
from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command
from qdq.cli.tables import new_table
from qdq.errors import BuildError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from exporters.tensorrt.build import BuildResult
    from exporters.tensorrt.onnx_file import OnnxFile
    from exporters.tensorrt.report import EngineReport

__all__ = ["build", "shown_report"]

_PANEL = "Engine"
_DEFAULT = BuildOptions()


@command
def build(
    model: Annotated[
        Path, typer.Option("--model", "-m", metavar="OUT_DIR", help="Exported directory, or an .onnx file.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Engine file to write, such as model.plan.")
    ],
    min_shapes: MinShapesOption = None,
    opt_shapes: OptShapesOption = None,
    max_shapes: MaxShapesOption = None,
    backend: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Builder: tensorrt, tensorrt-rtx, or auto, which is tensorrt if there is a GPU and tensorrt-rtx if "
            "not.",
            rich_help_panel=_PANEL,
        ),
    ] = "auto",
    options: Annotated[BuildOptions, _PANEL] = _DEFAULT,
    print_trtexec: Annotated[
        bool,
        typer.Option("--print-trtexec", metavar="", help="Print the equivalent trtexec command instead of building."),
    ] = False,
    print_polygraphy: Annotated[
        bool,
        typer.Option(
            "--print-polygraphy",
            metavar="",
            help="Print the equivalent polygraphy commands, with a comparison to ONNX Runtime, instead of building.",
        ),
    ] = False,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,  # noqa: ARG001 (a build has nothing random)
) -> None:
    """Build a TensorRT engine from an exported model and show what runs in int8.

    The network is strongly typed. TensorRT needs a GPU to build; TensorRT-RTX does not.

    Example: qdq build -m exported/ -o model.plan --min-shapes 1x8 --opt-shapes 8x128 --max-shapes 32x512
    """
    session = Session(json=json, verbose=verbose, quiet=quiet)
    from exporters.tensorrt.engine import build_engine, check_engine_path
    from exporters.tensorrt.onnx_file import read_onnx_file

    check_engine_path(output, model)
    source = read_onnx_file(model)
    profiles = chosen_profiles(source, min_shapes, opt_shapes, max_shapes)
    if print_trtexec or print_polygraphy:
        _print_commands(session, source, output, profiles, options, trtexec=print_trtexec, other=print_polygraphy)
        return
    with session.progress("building", total=1) as advance:
        engine = build_engine(
            model,
            output,
            profiles=profiles,
            options=options,
            backend=backend,
            progress=lambda phase, done, total: advance(done, f"building: {phase.lower()}", total),
        )
    for finding in engine.lint.findings:
        if finding.severity != "info":
            session.say(f"{finding.id} {finding.node}: {finding.problem}; {finding.rule.cure}")
    session.result(engine.to_dict(), _head(output, engine.result), "", *shown_report(engine.report))


def _print_commands(
    session: Session, source: OnnxFile, output: Path, profiles: Any, options: Any, *, trtexec: bool, other: bool
) -> None:
    from exporters.tensorrt.build import check_options
    from exporters.tensorrt.commands import format_command, polygraphy_command, trtexec_command
    from exporters.tensorrt.profiles import check_profiles

    problems = check_profiles(profiles, source.inputs, longest=source.longest)
    problems += check_options(options, quantized=source.is_quantized)
    if problems:
        raise BuildError(describe_problems(f"{source.path} cannot be built like this", problems))
    lines = {}
    if trtexec:
        lines["trtexec"] = trtexec_command(source.path, output, profiles, options)
    if other:
        highest = _vocabulary(source.path.with_name("config.json"))
        lines["polygraphy"] = polygraphy_command(source.path, output, profiles, options, highest=highest)
    session.result(lines, *(format_command(line) for line in lines.values()))


def _vocabulary(config: Path) -> dict[str, int]:
    try:
        document = json_library.loads(config.read_text(encoding="utf-8"))
        return {"input_ids": int(document["vocab_size"]) - 1}
    except (OSError, ValueError, KeyError, TypeError):
        return {"input_ids": 999}


def _head(output: Path, built: BuildResult) -> str:
    return (
        f"{output}: {built.plan_bytes / 1e6:.1f} MB (ONNX {built.onnx_bytes / 1e6:.1f} MB, float "
        f"{built.float_bytes / 1e6:.1f} MB), {built.backend}, built in {built.seconds:.1f} s"
    )


def shown_report(report: EngineReport) -> list[Table | str]:
    """Return the report as people read it."""
    if not report.kernels:
        return ["what its kernels compute is unknown: TensorRT did not report it"]
    table = new_table("what", "as meant", "of")
    for kind, name in (("linear", "linear layers"), ("attention", "products of attention")):
        done, wanted, _ = report.count(kind)
        table.add_row(f"{name} in 8 bits", str(done), str(wanted))
    fused = [row for row in report.attentions if row.fused]
    rows: dict[str, tuple[Sequence[object], Sequence[object]]] = {
        "attentions in one kernel": (fused, report.attentions),
        "attentions in one kernel, in 8 bits": ([a for a in fused if a.runs_in in ("int8", "fp8")], report.attentions),
        "query, key and value in one GEMM": ([row for row in report.merged if row.merged], report.merged),
        "residual additions fused": ([row for row in report.residuals if row.fused], report.residuals),
    }
    for name, (done_rows, all_rows) in rows.items():
        table.add_row(name, str(len(done_rows)), str(len(all_rows)))
    lines = [f"{report.kernels} kernels; what is not quantized is computed in {report.precision}"]
    lines += [f"not in {row.wanted}: {row.name} runs in {row.runs_in}: {row.reason}" for row in report.missed]
    lines += [f"attention in several kernels: {row.name}: {row.reason}" for row in report.attentions if not row.fused]
    lines += [f"not merged: {', '.join(row.names)}" for row in report.merged if not row.merged]
    lines += [f"addition on its own: {row.name}" for row in report.residuals if not row.fused]
    return [table, "", *lines]
