"""Options of a build. Importing this module loads neither torch nor onnx."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path  # noqa: TC003 (options are made from the annotations)
from typing import Any

from qdq.settings import documented, flag, setting

__all__ = ["HARDWARE", "BuildOptions"]

HARDWARE = {"none": "NONE", "ampere-plus": "AMPERE_PLUS", "same-compute-capability": "SAME_COMPUTE_CAPABILITY"}
"""Name on the command line -> member of TensorRT's ``HardwareCompatibilityLevel``."""


@documented
@dataclass(frozen=True, kw_only=True)
class BuildOptions:
    """The settings of a TensorRT build."""

    workspace_mb: int | None = setting(
        None,
        "Largest workspace memory of kernels in MiB; by default TensorRT chooses.",
        option="--workspace",
        metavar="MIB",
    )
    optimization_level: int | None = setting(
        None, "Effort of the search for fast kernels, from 0 to 5; by default 3.", metavar="N"
    )
    timing_cache: Path | None = setting(  # noqa: RUF009 (its default is None)
        None, "File of kernel timings to read and update, which makes later builds faster.", metavar="FILE"
    )
    hardware: str = setting(
        "none",
        "Other GPUs that the engine must run on: none, ampere-plus or same-compute-capability.",
        option="--hardware-compatibility",
        metavar="NAME",
    )
    version_compatible: bool = setting(False, "Let later versions of TensorRT load the engine.", flag())
    refit: bool = setting(False, "Allow the weights to be replaced later. Float models only.", flag())
    strip: bool = setting(
        False, "Leave the weights out of the engine; refitting adds them later. Float models only.", flag()
    )
    tf32: bool = setting(False, "Let float32 matrix products use TF32.", flag())

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return asdict(self) | {"timing_cache": None if self.timing_cache is None else str(self.timing_cache)}
