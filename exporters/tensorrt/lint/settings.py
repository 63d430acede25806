"""What a check may ask for besides the graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from exporters.tensorrt.onnx_file import OnnxFile
    from exporters.tensorrt.profiles import Profile

__all__ = ["Settings"]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """For one run of the lint.

    Args:
        source: the file.
        version: of TensorRT.
        profiles: that the engine is to have.
        refit: whether weights are to be exchanged later.
    """

    source: OnnxFile
    version: tuple[int, int]
    profiles: Sequence[Profile] = field(default_factory=tuple)
    refit: bool = False
