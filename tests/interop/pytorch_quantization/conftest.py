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
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

# The toolkit puts a handler of absl's on the root logger, bound to the stream of the moment, and closes that with it:
# the tests of commands, which set up logging anew, would lose their stderr.
_HANDLERS = list(logging.getLogger().handlers)
with suppress(ImportError):
    import_module("pytorch_quantization")
logging.getLogger().handlers[:] = _HANDLERS

FOLDER = Path(__file__).parent.parent / "golden"
CASES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))
HIDDEN, LAYERS = 16, 2


class Golden:
    """One file that ``tools/golden_qdqbert.py`` made, taken apart."""

    def __init__(self, name: str) -> None:
        with safe_open(FOLDER / f"{name}.safetensors", framework="pt") as file:
            about = {key: json.loads(value) for key, value in file.metadata().items()}
            self._tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        self.config: dict[str, Any] = about["config"]
        self.order: list[str] = about["order"]
        self.inputs = self.part("in")
        self.state = self.part("weight")

    def part(self, kind: str) -> dict[str, Tensor]:
        return {key.partition(":")[2]: value for key, value in self._tensors.items() if key.startswith(f"{kind}:")}

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
def base() -> Golden:
    """The bare encoder, to change and to damage."""
    return Golden("base")


@pytest.fixture
def choice() -> Golden:
    """One with a head, whose keys have the prefix."""
    return Golden("sequence-classification")


@pytest.fixture(autouse=True)
def _one_thread(_reproducible: None) -> None:
    """These models are too small for two threads, which then only wait for each other."""
    torch.set_num_threads(1)
