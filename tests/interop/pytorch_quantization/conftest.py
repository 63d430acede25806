"""Real QDQBERT models: tiny, with the ranges that pytorch-quantization found and the outputs it computed."""

from __future__ import annotations

import json
import logging
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.interop.support import GoldenFile

# The toolkit puts a handler of absl's on the root logger, bound to the stream of the moment, and closes that with it:
# the tests of commands, which set up logging anew, would lose their stderr.
_HANDLERS = list(logging.getLogger().handlers)
with suppress(ImportError):
    import_module("pytorch_quantization")
logging.getLogger().handlers[:] = _HANDLERS

FOLDER = Path(__file__).parent.parent / "golden"
CASES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))
HIDDEN, LAYERS = 16, 2


class Golden(GoldenFile):
    """One model of ``tools/golden_qdqbert.py``."""

    def __init__(self, name: str) -> None:
        super().__init__(FOLDER / f"{name}.safetensors")
        self.config: dict[str, Any] = self.about["config"]
        self.order: list[str] = self.about["order"]
        self.inputs = self.tensors("in")
        self.state = self.tensors("weight")

    @property
    def amax(self) -> dict[str, Tensor]:
        return {key: value for key, value in self.state.items() if key.endswith("._amax")}

    @property
    def weights(self) -> dict[str, Tensor]:
        return {key: value for key, value in self.state.items() if not key.endswith("._amax")}

    def write(self, folder: Path, state: dict[str, Tensor] | None = None, **config: Any) -> Path:
        """The checkpoint that upstream would have written; ``state`` and ``config`` change it."""
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(self.config | config))
        save_file(self.state if state is None else state, folder / "model.safetensors", metadata={"format": "pt"})
        return folder


@pytest.fixture(params=CASES)
def golden(request: pytest.FixtureRequest) -> Golden:
    return Golden(request.param)


@pytest.fixture
def golden_encoder() -> Golden:
    """The bare encoder, to change and to damage."""
    return Golden("base")


@pytest.fixture
def golden_classifier() -> Golden:
    """One with a head, whose keys have the prefix."""
    return Golden("sequence-classification")


@pytest.fixture(autouse=True)
def _one_thread(_reproducible: None) -> None:
    """These models are too small for two threads, which then only wait for each other."""
    torch.set_num_threads(1)
