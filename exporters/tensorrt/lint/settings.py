"""The settings of a lint."""

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
    """Give the checks what they need besides the graph.

    Args:
        source: The file.
        version: Version of TensorRT.
        profiles: Optimization profiles of the engine.
        refit: Whether the weights of the engine will be replaced later.
    """

    source: OnnxFile
    version: tuple[int, int]
    profiles: Sequence[Profile] = field(default_factory=tuple)
    refit: bool = False
