"""What is known of an engine, written beside it: a plan itself can be opened on its own GPU alone.

``model.plan.json`` holds how ``model.plan`` was built, its kernels, and the report; a digest ties the two together.
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
    """Where the record of a plan lies."""
    return plan.with_name(f"{plan.name}.json")


def is_plan(path: Path) -> bool:
    """Whether a file is to be taken for an engine: by its name, or because a record lies beside it."""
    return path.suffix in (".plan", ".engine", ".trt") or (path.is_file() and metadata_path(path).is_file())


def write_metadata(
    plan: Path, built: BuildResult, report: EngineReport, findings: Sequence[dict[str, Any]] = (), *, source: Path
) -> None:
    """Write the record of a plan that was just built from the export or the file ``source``.

    Raises:
        StorageError: when it cannot be written.
    """
    document = {
        "format": FORMAT,
        "sha256": _digest(plan),
        "source": str((source if source.is_dir() else source.parent).resolve()),
        **built.to_dict(),
        "report": report.to_dict(),
        "findings": list(findings),
        "layers": [kernel.to_dict() for kernel in built.kernels],
    }
    write_json(metadata_path(plan), document)


def read_metadata(plan: Path) -> dict[str, Any]:
    """The record of a plan, its ``report`` as :class:`EngineReport`, its ``layers`` as :class:`Kernel`.

    Raises:
        CheckpointError: when there is no plan or no record, or it is of another plan or a newer format.
    """
    path = metadata_path(plan)
    if not plan.is_file():
        raise CheckpointError(f"{plan}: no such file")
    missing = f"{plan}: what it computes is told by {path.name}, which qdq build writes beside it and which is missing"
    document = read_json(path, missing=missing)
    if document.get("format") != FORMAT:
        raise CheckpointError(f"{path}: not a format that this version reads ({FORMAT})")
    if document.get("sha256") != _digest(plan):
        raise CheckpointError(f"{path} is of another engine than {plan}: build it again")
    try:
        document["source"] = str(document["source"])
        document["report"] = EngineReport.from_dict(document["report"])
        document["layers"] = [Kernel.from_dict(kernel) for kernel in document["layers"]]
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: {error} is missing or of another kind") from error
    return document


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
