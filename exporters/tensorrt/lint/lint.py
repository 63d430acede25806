"""Lint a file: run every check."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from exporters.tensorrt.graph_structure import GraphStructure
from exporters.tensorrt.lint.graph_checks import GRAPH_CHECKS
from exporters.tensorrt.lint.operators import target_version
from exporters.tensorrt.lint.placement_checks import PLACEMENT_CHECKS
from exporters.tensorrt.lint.quantizer_checks import QUANTIZER_CHECKS
from exporters.tensorrt.lint.settings import Settings
from exporters.tensorrt.profiles import default_profile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tensorrt.lint.rules import Finding
    from exporters.tensorrt.onnx_file import OnnxFile
    from exporters.tensorrt.profiles import Profile

__all__ = ["CHECKS", "LintReport", "lint"]

CHECKS = (*QUANTIZER_CHECKS, *PLACEMENT_CHECKS, *GRAPH_CHECKS)

_ORDER = ("error", "warning", "info")


@dataclass(frozen=True)
class LintReport:
    """The findings of a lint.

    Args:
        version: Version of TensorRT that the file was checked for.
        findings: The findings, errors first, in graph order.
    """

    version: tuple[int, int]
    findings: Sequence[Finding]

    def count(self, severity: str) -> int:
        """Return how many findings are ``error``, ``warning`` or ``info``."""
        return sum(finding.severity == severity for finding in self.findings)

    def holds(self, *, strict: bool = False) -> bool:
        """Return whether there is no error, and if ``strict`` no warning."""
        return not self.count("error") and not (strict and self.count("warning"))

    def plus(self, findings: Sequence[Finding]) -> LintReport:
        """Return a report with more findings."""
        return replace(self, findings=_sorted([*self.findings, *findings]))

    def reasons(self) -> dict[str, list[str]]:
        """Return errors and warnings by name of the node; they explain why something does not run in int8."""
        found: dict[str, list[str]] = {}
        for finding in self.findings:
            if finding.severity != "info":
                found.setdefault(finding.node, []).append(f"{finding.id}: {finding.problem}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "version": ".".join(map(str, self.version)),
            "counts": {severity: self.count(severity) for severity in _ORDER},
            "findings": [finding.to_dict() for finding in self.findings],
        }


def lint(
    source: OnnxFile,
    *,
    target: str = "tensorrt",
    profiles: Sequence[Profile] | None = None,
    refit: bool = False,
) -> LintReport:
    """Check a file. Its weights are not read.

    Args:
        source: The file; see :func:`exporters.tensorrt.onnx_file.read_onnx_file`.
        target: ``tensorrt``, ``tensorrt:10.16`` or ``tensorrt-rtx``.
        profiles: Optimization profiles of the engine, the default one if None.
        refit: Whether the weights of the engine will be replaced later.

    Raises:
        ConfigError: If the target is unknown.
    """
    version = target_version(target)
    if profiles is None:
        profiles = [default_profile(source.inputs, longest=source.longest or 512)]
    settings = Settings(source=source, version=version, profiles=profiles, refit=refit)
    structure = GraphStructure(source.model)
    findings = [finding for check in CHECKS for finding in check(structure, settings)]
    return LintReport(version, _sorted(findings))


def _sorted(findings: Sequence[Finding]) -> tuple[Finding, ...]:
    return tuple(sorted(findings, key=lambda finding: _ORDER.index(finding.severity)))
