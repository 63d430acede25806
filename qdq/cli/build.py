"""``qdq build``: a TensorRT engine from an exported directory, and what really runs in int8 in it."""

from __future__ import annotations

import json as json_library
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qdq.cli.engine_shapes import MaxShapesOption, MinShapesOption, OptShapesOption, chosen_profiles
from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command
from qdq.cli.tables import new_table
from qdq.errors import BuildError, ConfigError, describe_problems

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.table import Table

    from exporters.tensorrt.build import BuildResult
    from exporters.tensorrt.lint.lint import LintReport
    from exporters.tensorrt.onnx_file import OnnxFile
    from exporters.tensorrt.report import EngineReport

__all__ = ["build", "shown_report"]

_PANEL = "Engine"


@command
def build(
    model: Annotated[
        Path, typer.Option("--model", "-m", metavar="OUT_DIR", help="Directory of qdq export, or an .onnx file.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="The engine to write, model.plan.")],
    min_shapes: MinShapesOption = None,
    opt_shapes: OptShapesOption = None,
    max_shapes: MaxShapesOption = None,
    backend: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="tensorrt, tensorrt-rtx (builds without a GPU), or auto: the former where there is a GPU.",
            rich_help_panel=_PANEL,
        ),
    ] = "auto",
    workspace: Annotated[
        int | None, typer.Option(metavar="MIB", help="Memory that kernels may use.", rich_help_panel=_PANEL)
    ] = None,
    optimization_level: Annotated[
        int | None,
        typer.Option(metavar="N", help="0 to 5: how long to search for kernels.", rich_help_panel=_PANEL),
    ] = None,
    timing_cache: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Timings to start from, and to add to.", rich_help_panel=_PANEL),
    ] = None,
    hardware_compatibility: Annotated[
        str,
        typer.Option(metavar="NAME", help="none, ampere-plus or same-compute-capability.", rich_help_panel=_PANEL),
    ] = "none",
    version_compatible: Annotated[
        bool,
        typer.Option(
            "--version-compatible", metavar="", help="Later versions of TensorRT can load it.", rich_help_panel=_PANEL
        ),
    ] = False,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit", metavar="", help="Weights can be exchanged later; float models.", rich_help_panel=_PANEL
        ),
    ] = False,
    strip: Annotated[
        bool, typer.Option("--strip", metavar="", help="Leave the weights out, to be refitted.", rich_help_panel=_PANEL)
    ] = False,
    tf32: Annotated[
        bool, typer.Option("--tf32", metavar="", help="Let float32 products round to tf32.", rich_help_panel=_PANEL)
    ] = False,
    print_trtexec: Annotated[
        bool, typer.Option("--print-trtexec", metavar="", help="Print the same build for trtexec, and build nothing.")
    ] = False,
    print_polygraphy: Annotated[
        bool,
        typer.Option(
            "--print-polygraphy",
            metavar="",
            help="Print the same build and a comparison with ONNX Runtime for polygraphy.",
        ),
    ] = False,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,  # noqa: ARG001 (a build has nothing random)
) -> None:
    """Build a TensorRT engine, strongly typed, and show what runs in int8; works without a GPU in TensorRT-RTX.

    Example: qdq build -m exported/ -o model.plan --min-shapes 1x8 --opt-shapes 8x128 --max-shapes 32x512
    """
    session = Session(json=json, verbose=verbose, quiet=quiet)
    from exporters.tensorrt.build import BuildOptions
    from exporters.tensorrt.onnx_file import read_onnx_file

    options = BuildOptions(
        workspace_mb=workspace,
        optimization_level=optimization_level,
        timing_cache=timing_cache,
        hardware=hardware_compatibility,
        version_compatible=version_compatible,
        refit=refit,
        strip=strip,
        tf32=tf32,
    )
    if output.is_dir():
        raise ConfigError(f"{output}: is a folder; name a file, {output / 'model.plan'}")
    source = read_onnx_file(model)
    profiles = chosen_profiles(source, min_shapes, opt_shapes, max_shapes)
    if print_trtexec or print_polygraphy:
        _print_commands(session, source, output, profiles, options, trtexec=print_trtexec, other=print_polygraphy)
        return
    _build(session, source, model, output, profiles, options, backend)


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


def _build(
    session: Session, source: OnnxFile, model: Path, output: Path, profiles: Any, options: Any, backend: str
) -> None:
    from exporters.tensorrt import build as building
    from exporters.tensorrt.lint.lint import lint
    from exporters.tensorrt.plan_metadata import write_metadata
    from exporters.tensorrt.report import engine_report

    linted = lint(source, target="tensorrt", profiles=profiles, refit=options.refit or options.strip)
    with session.progress("building", total=1) as advance:
        try:
            built = building.build(
                model,
                output,
                profiles=profiles,
                options=options,
                backend=backend,
                progress=lambda phase, done, total: advance(done, f"building: {phase.lower()}", total),
            )
        except BuildError as error:
            raise _with_findings(error, linted) from error
    report = engine_report(source.model, built.kernels, linted.reasons())
    findings = [finding.to_dict() for finding in linted.findings]
    write_metadata(output, built, report, findings, source=model)
    for finding in linted.findings:
        if finding.severity != "info":
            session.say(f"{finding.id} {finding.node}: {finding.problem}; {finding.rule.cure}")
    document = {**built.to_dict(), "output": output, "report": report.to_dict(), "findings": findings}
    session.result(document, _head(output, built), "", *shown_report(report))


def _with_findings(error: BuildError, linted: LintReport) -> BuildError:
    """What TensorRT said, and what the lint says about the same file: which node, and what to do."""
    errors = [f for f in linted.findings if f.severity == "error" and f.id != "E12"]
    if not errors:
        return error
    lines = [f"{finding.id} {finding.node}: {finding.problem}; {finding.rule.cure}" for finding in errors]
    return BuildError(f"{error}\n{describe_problems('what qdq lint finds', lines)}")


def _head(output: Path, built: BuildResult) -> str:
    return (
        f"{output}: {built.plan_bytes / 1e6:.1f} MB (ONNX {built.onnx_bytes / 1e6:.1f} MB, float "
        f"{built.float_bytes / 1e6:.1f} MB), {built.backend}, built in {built.seconds:.1f} s"
    )


def shown_report(report: EngineReport) -> list[Table | str]:
    """The report for people."""
    if not report.kernels:
        return ["what its kernels compute is not known: TensorRT did not tell"]
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
