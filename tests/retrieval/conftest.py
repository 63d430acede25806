"""The golden model of ``tools/golden_realm.py``, with what transformers 4.40.2 made of every question."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from qdq.retrieval.open_qa import OpenQA, load

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture(autouse=True)
def _one_thread(_reproducible: None) -> None:
    torch.set_num_threads(1)


class Golden:
    """The golden file, taken apart."""

    folder = GOLDEN

    def __init__(self) -> None:
        with safe_open(GOLDEN / "golden.safetensors", framework="pt") as file:
            self.questions = {name: json.loads(value) for name, value in file.metadata().items()}
            self.tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        lines = (GOLDEN / "records.jsonl").read_text().splitlines()
        self.records = [json.loads(line)["text"] for line in lines]

    def part(self, question: str, mode: str) -> dict[str, torch.Tensor]:
        prefix = f"{question}:{mode}:"
        return {key.removeprefix(prefix): value for key, value in self.tensors.items() if key.startswith(prefix)}

    def model(self, **options: Any) -> OpenQA:
        return load(GOLDEN, self.records, **options)


@pytest.fixture(scope="session")
def golden() -> Golden:
    return Golden()
