"""``qdq lint``: check whether TensorRT can build an exported model and run it in int8."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from qdq.cli.engine_shapes import MaxShapesOption, MinShapesOption, OptShapesOption, chosen_profiles
from qdq.cli.session import JsonOption, QuietOption, SeedOption, Session, VerboseOption, command
from qdq.cli.tables import new_table
from qdq.errors import VerificationError

if TYPE_CHECKING:
    from rich.table import Table

    from exporters.tensorrt.lint.lint import LintReport

__all__ = ["lint"]

_SHOWN = 3  # nodes of one rule


@command
def lint(
    exported: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Exported directory, or an .onnx file.")],
    target: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="TensorRT version to check for, as in tensorrt:10.16; plain tensorrt means the newest known one.",
        ),
    ] = "tensorrt",
    strict: Annotated[
        bool, typer.Option("--strict", metavar="", help="End with exit code 1 for warnings as well.")
    ] = False,
    fix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a repaired copy of the model to this file, after comparing it."),
    ] = None,
    parse: Annotated[
        bool, typer.Option("--parse", metavar="", help="Also run the parser of an installed TensorRT.")
    ] = False,
    refit: Annotated[
        bool,
        typer.Option(
            "--refit", metavar="", help="Check for an engine whose weights will be replaced later (refitted)."
        ),
    ] = False,
    min_shapes: MinShapesOption = None,
    opt_shapes: OptShapesOption = None,
    max_shapes: MaxShapesOption = None,
    json: JsonOption = False,
    verbose: VerboseOption = 0,
    quiet: QuietOption = False,
    seed: SeedOption = 0,  # noqa: ARG001 (nothing is random here)
) -> None:
    """Check an exported model for TensorRT, without TensorRT. Exit code 1 means that the build would fail.

    Errors (E) keep an engine from being built, warnings (W) keep it from running everything in int8.

    Example: qdq lint exported/ --target tensorrt:10.16 --strict
    """
    session = Session(json=json, verbose=verbose, quiet=quiet)
    from exporters.tensorrt.lint.lint import lint as check
    from exporters.tensorrt.lint.parser_check import parser_findings
    from exporters.tensorrt.lint.repair import repair
    from exporters.tensorrt.onnx_file import read_onnx_file

    source = read_onnx_file(exported)
    profiles = chosen_profiles(source, min_shapes, opt_shapes, max_shapes)
    repairs: list[str] = []
    if fix is not None:
        repairs = repair(source.path, fix)
        source = read_onnx_file(fix)
        for line in repairs:
            session.say(line)
    report = check(source, target=target, profiles=profiles, refit=refit)
    if parse:
        report = report.plus(parser_findings(source.path))
    error = None
    if not report.holds(strict=strict):
        error = VerificationError(f"{fix or exported} is not ready for {target}: {_counted(report)}")
    version = ".".join(map(str, report.version))
    session.result(
        {"path": fix or exported, "target": target, **report.to_dict(), "repairs": repairs},
        f"{fix or exported}: {_counted(report) if report.findings else 'nothing found'}, TensorRT {version}",
        *_shown(report, full=verbose > 0),
        error=error,
    )


def _counted(report: LintReport) -> str:
    counts = ((report.count(severity), severity) for severity in ("error", "warning", "info"))
    return ", ".join(f"{count} {name}{'s' if count > 1 and name != 'info' else ''}" for count, name in counts if count)


def _shown(report: LintReport, *, full: bool) -> list[Table | str]:
    if not report.findings:
        return []
    table = new_table("", "where", "what", words=3)
    lines: list[str] = []
    for key in dict.fromkeys((finding.id, finding.severity) for finding in report.findings):
        findings = [finding for finding in report.findings if (finding.id, finding.severity) == key]
        for finding in findings if full else findings[:_SHOWN]:
            table.add_row(finding.id, finding.node, finding.problem)
        if len(findings) > _SHOWN and not full:
            table.add_row("", f"... and {len(findings) - _SHOWN} more", "-v shows all")
        rule = findings[0].rule
        line = f"{rule.id}: {rule.rule}. To cure it: {rule.cure}. ({rule.source})"
        if line not in lines:
            lines.append(line)
    return ["", table, "", *lines]
