"""Golden files: the tensors of one case, and what its maker wrote about it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from safetensors import safe_open

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor


class GoldenFile:
    """A safetensors file whose keys are ``kind:name``.

    Args:
        path: The file.

    Attributes:
        about: The metadata; the values are JSON in the file.
    """

    def __init__(self, path: Path) -> None:
        with safe_open(path, framework="pt") as file:
            self.about: dict[str, Any] = {key: json.loads(value) for key, value in (file.metadata() or {}).items()}
            self._tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """Return the tensors of one kind by name."""
        return {
            key.removeprefix(f"{kind}:"): value for key, value in self._tensors.items() if key.startswith(f"{kind}:")
        }
