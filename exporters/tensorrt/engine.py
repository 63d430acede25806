"""From an exported directory or an ONNX file to an engine, or to what keeps it from becoming one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from exporters.tensorrt import build as building
from exporters.tensorrt.lint import lint as linting
from exporters.tensorrt.onnx_file import read_onnx_file
from exporters.tensorrt.plan_metadata import write_metadata
from exporters.tensorrt.profiles import default_profile
from exporters.tensorrt.report import engine_report
from qdq.errors import BuildError, ConfigError, describe_problems
from qdq.storage import check_replaceable_file

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from exporters.tensorrt.backend import Backend
    from exporters.tensorrt.build import BuildOptions, BuildResult
    from exporters.tensorrt.lint.lint import LintReport
    from exporters.tensorrt.profiles import Profile
    from exporters.tensorrt.report import EngineReport

__all__ = ["Engine", "build_engine", "check_engine_path", "lint"]


@dataclass(frozen=True)
class Engine:
    """An engine that was built.

    Args:
        path: The file of the engine. Its metadata lies beside it.
        result: How it was built.
        report: What its kernels compute, and in which type.
        lint: What the lint found in the ONNX file.
    """

    path: Path
    result: BuildResult
    report: EngineReport
    lint: LintReport

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        findings = [finding.to_dict() for finding in self.lint.findings]
        return {**self.result.to_dict(), "output": self.path, "report": self.report.to_dict(), "findings": findings}


def lint(
    model: str | Path,
    *,
    target: str = "tensorrt",
    profiles: Sequence[Profile] | None = None,
    refit: bool = False,
) -> LintReport:
    """Check whether TensorRT can build an export, and run it in int8. TensorRT itself is not needed.

    Args:
        model: Exported directory, or an ONNX file.
        target: ``tensorrt`` for the newest known version, ``tensorrt:10.16``, or ``tensorrt-rtx``.
        profiles: Shapes of the engine. None takes the default ones.
        refit: Whether the weights of the engine are to be exchanged later.

    Returns:
        All findings. ``report.holds()`` says whether an engine can be built.

    Raises:
        CheckpointError: There is no such export or file.
        ConfigError: The target is not known.
    """
    return linting.lint(read_onnx_file(Path(model)), target=target, profiles=profiles, refit=refit)


def build_engine(
    model: str | Path,
    output: str | Path,
    *,
    profiles: Sequence[Profile] | None = None,
    options: BuildOptions | None = None,
    backend: str | Backend = "auto",
    progress: Callable[[str, int, int], None] | None = None,
) -> Engine:
    """Build an engine from an export, write it with its metadata, and report what runs in int8.

    Args:
        model: Exported directory, or an ONNX file.
        output: File of the engine. An older engine there is replaced.
        profiles: Shapes that the engine works for. None takes the default ones.
        options: How to build. None takes the defaults.
        backend: ``tensorrt``, ``tensorrt-rtx`` (builds without a GPU), or ``auto``.
        progress: Called with a phase of the builder, steps done and steps in all.

    Raises:
        BuildError: Shapes or options do not fit together, or TensorRT refuses the file. The message also lists the
            errors that the lint finds.
        CheckpointError: There is no such export or file.
        ConfigError: The output is a directory, or a file that is no engine of qdq.
        MissingPackageError: TensorRT is not installed.
        StorageError: The engine cannot be written.
        KeyboardInterrupt: The build was interrupted; nothing is written.
    """
    model, output = Path(model), Path(output)
    options = options or building.BuildOptions()
    check_engine_path(output, model)
    file = read_onnx_file(model)
    if profiles is None:
        profiles = [default_profile(file.inputs, longest=file.longest or 512)]
    linted = linting.lint(file, target="tensorrt", profiles=profiles, refit=options.refit or options.strip)
    try:
        result = building.build(model, output, profiles=profiles, options=options, backend=backend, progress=progress)
    except BuildError as error:
        raise _with_findings(error, linted) from error
    report = engine_report(file.model, result.kernels, linted.reasons())
    write_metadata(output, result, report, [finding.to_dict() for finding in linted.findings], source=model)
    return Engine(output, result, report, linted)


def check_engine_path(output: Path, model: Path | None = None) -> None:
    """Raise if an engine cannot be written to ``output``.

    Args:
        output: File of the engine.
        model: The exported directory or the ONNX file that it is built from, which must not be replaced.

    Raises:
        ConfigError: It is a directory, or a file that is no engine of qdq.
        StorageError: Its directory cannot be written.
    """
    if output.is_dir():
        raise ConfigError(f"{output}: is a folder; name a file, {output / 'model.plan'}")
    if model is not None and model.is_dir():
        model = next((file for file in model.glob("*.onnx*") if file.exists() and _is_same(file, output)), None)
    check_replaceable_file(output, "engine", inputs=[model])


def _is_same(one: Path, other: Path) -> bool:
    return other.exists() and one.samefile(other)


def _with_findings(error: BuildError, linted: LintReport) -> BuildError:
    """Add the errors that the lint finds: they name the node and the cure, which TensorRT's messages seldom do."""
    errors = [finding for finding in linted.findings if finding.severity == "error" and finding.id != "E12"]
    if not errors:
        return error
    lines = [f"{finding.id} {finding.node}: {finding.problem}; {finding.rule.cure}" for finding in errors]
    return BuildError(f"{error}\n{describe_problems('what qdq lint finds', lines)}")
