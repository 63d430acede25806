"""Report a defect of qdq: one line for the user, and a file to report it with."""

from __future__ import annotations

import platform
import sys
import tempfile
import traceback
from importlib import metadata

import qdq

__all__ = ["FAILED", "OUT_OF_MEMORY", "describe", "is_out_of_memory"]

FAILED = 70
"""The exit code of a defect of qdq, that of ``EX_SOFTWARE`` in sysexits.h. 1 means that a check failed."""

OUT_OF_MEMORY = "out of memory; a smaller --batch-size or --seq-len needs less"

_PACKAGES = ("torch", "onnx", "onnxruntime", "openvino", "transformers")
_NO_MEMORY = ("not enough memory", "can't allocate memory", "out of memory", "bad_alloc")


def is_out_of_memory(error: Exception) -> bool:
    """Return whether memory ran out. torch and the runtimes have no type of their own for it."""
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in _NO_MEMORY)
    )


def describe(error: Exception) -> str:
    """Return the line for the user, and write the traceback to a file in the system's temporary folder."""
    what = " ".join(traceback.format_exception_only(error)[-1].split())
    report = _report(error)
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="qdq-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(report)
    except OSError:
        return f"a defect of qdq, please report it with what follows: {what}\n{report}"
    return f"a defect of qdq, please report it with the file {file.name}: {what}"


def _report(error: Exception) -> str:
    versions = [f"qdq {qdq.__version__}", f"Python {platform.python_version()}", platform.platform()]
    for package in _PACKAGES:
        try:
            versions.append(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            continue
    return "\n".join([", ".join(versions), " ".join(sys.argv), "", *traceback.format_exception(error)])
