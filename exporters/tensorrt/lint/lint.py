"""Run every check on a file."""

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
    """What was found.

    Args:
        version: of the TensorRT that it was checked for.
        findings: errors first, in the order of the graph.
    """

    version: tuple[int, int]
    findings: Sequence[Finding]

    def count(self, severity: str) -> int:
        """How many findings are ``error``, ``warning`` or ``info``."""
        return sum(finding.severity == severity for finding in self.findings)

    def holds(self, *, strict: bool = False) -> bool:
        """Whether there is no error; and no warning where it is strict."""
        return not self.count("error") and not (strict and self.count("warning"))

    def plus(self, findings: Sequence[Finding]) -> LintReport:
        """With more findings."""
        return replace(self, findings=_sorted([*self.findings, *findings]))

    def reasons(self) -> dict[str, list[str]]:
        """Errors and warnings by node: why something may not run in int8."""
        found: dict[str, list[str]] = {}
        for finding in self.findings:
            if finding.severity != "info":
                found.setdefault(finding.node, []).append(f"{finding.id}: {finding.problem}")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
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
    """Check a file; weights are not read.

    Args:
        source: see :func:`exporters.tensorrt.onnx_file.read_onnx_file`.
        target: ``tensorrt``, ``tensorrt:10.16``, ``tensorrt-rtx``.
        profiles: that the engine is to have; None takes the default one.
        refit: whether its weights are to be exchanged later.

    Raises:
        ConfigError: for a target that is not known.
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
