"""Write what is known of an engine beside its plan, which can be opened only on the GPU it was built for.

``model.plan.json`` holds how ``model.plan`` was built, its kernels and the report. A checksum ties the two files
together.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from exporters.tensorrt.kernels import Kernel
from exporters.tensorrt.report import EngineReport
from qdq.errors import CheckpointError
from qdq.storage import read_json, write_json

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from exporters.tensorrt.build import BuildResult

__all__ = ["is_plan", "metadata_path", "read_metadata", "write_metadata"]

FORMAT = 1


def metadata_path(plan: Path) -> Path:
    """Return the path of the metadata of a plan."""
    return plan.with_name(f"{plan.name}.json")


def is_plan(path: Path) -> bool:
    """Return whether a file is an engine: by its extension, or because there is metadata beside it."""
    return path.suffix in (".plan", ".engine", ".trt") or (path.is_file() and metadata_path(path).is_file())


def write_metadata(
    plan: Path, built: BuildResult, report: EngineReport, findings: Sequence[dict[str, Any]] = (), *, source: Path
) -> None:
    """Write the metadata of a plan that was just built.

    Args:
        plan: The plan.
        built: What was built.
        report: What the engine computes in int8.
        findings: Findings of the lint, as plain values.
        source: The exported directory or ONNX file that the plan was built from.

    Raises:
        StorageError: If the file cannot be written.
    """
    document = {
        "format": FORMAT,
        "sha256": _checksum(plan),
        "source": str((source if source.is_dir() else source.parent).resolve()),
        **built.to_dict(),
        "report": report.to_dict(),
        "findings": list(findings),
        "layers": [kernel.to_dict() for kernel in built.kernels],
    }
    write_json(metadata_path(plan), document)


def read_metadata(plan: Path) -> dict[str, Any]:
    """Read the metadata of a plan, with ``report`` as :class:`EngineReport` and ``layers`` as :class:`Kernel`.

    Raises:
        CheckpointError: If the plan or its metadata is missing, or the metadata belongs to another plan or has a format
            that is not known.
    """
    path = metadata_path(plan)
    if not plan.is_file():
        raise CheckpointError(f"{plan}: no such file")
    missing = f"{plan}: {path.name}, which qdq build writes beside it and which says what it computes, is missing"
    document = read_json(path, missing=missing)
    if document.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a format that this version reads ({FORMAT})")
    if document.get("sha256") != _checksum(plan):
        raise CheckpointError(f"{path} belongs to another engine than {plan}: build it again")
    try:
        document["source"] = str(document["source"])
        document["report"] = EngineReport.from_dict(document["report"])
        document["layers"] = [Kernel.from_dict(kernel) for kernel in document["layers"]]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: {error} is missing or has another type") from error
    return document


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
