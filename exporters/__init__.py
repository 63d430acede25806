"""Export a quantized model, verify that the file computes the same, build an engine from it, and time it.

Parts that serve every backend stand directly in this package; each backend has a subpackage of its own. Names are
imported when they are first used: ``import exporters`` alone loads neither torch nor onnx. Users write
``import qdq.exporters`` or ``from qdq.exporters import OnnxRuntimeRunner``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from exporters.benchmark import BenchmarkResult, Candidate, Shape
    from exporters.directory import export, verify
    from exporters.interface import ExportInterface
    from exporters.onnx.export import ExportResult, export_onnx
    from exporters.runners import EvaluatorRunner, OnnxRuntimeRunner, OpenVINORunner, Runner, TorchRunner
    from exporters.tensorrt.build_options import BuildOptions
    from exporters.tensorrt.engine import Engine, build_engine, lint
    from exporters.tensorrt.lint.lint import LintReport
    from exporters.tensorrt.profiles import Profile, parse_profiles
    from exporters.tensorrt.runner import TensorRTRunner
    from exporters.verification.verify import VerificationReport

_HOMES = {
    "BenchmarkResult": "benchmark",
    "BuildOptions": "tensorrt.build_options",
    "Candidate": "benchmark",
    "Engine": "tensorrt.engine",
    "EvaluatorRunner": "runners",
    "ExportInterface": "interface",
    "ExportResult": "onnx.export",
    "LintReport": "tensorrt.lint.lint",
    "OnnxRuntimeRunner": "runners",
    "OpenVINORunner": "runners",
    "Profile": "tensorrt.profiles",
    "Runner": "runners",
    "Shape": "benchmark",
    "TensorRTRunner": "tensorrt.runner",
    "TorchRunner": "runners",
    "VerificationReport": "verification.verify",
    "build_engine": "tensorrt.engine",
    "export": "directory",
    "export_onnx": "onnx.export",
    "lint": "tensorrt.engine",
    "parse_profiles": "tensorrt.profiles",
    "verify": "directory",
}

__all__ = [
    "BenchmarkResult",
    "BuildOptions",
    "Candidate",
    "Engine",
    "EvaluatorRunner",
    "ExportInterface",
    "ExportResult",
    "LintReport",
    "OnnxRuntimeRunner",
    "OpenVINORunner",
    "Profile",
    "Runner",
    "Shape",
    "TensorRTRunner",
    "TorchRunner",
    "VerificationReport",
    "build_engine",
    "export",
    "export_onnx",
    "lint",
    "parse_profiles",
    "verify",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'exporters' has no attribute {name!r}")
    value = getattr(import_module(f"exporters.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
