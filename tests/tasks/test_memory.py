"""A million lines: what grows with the data is two numbers an example."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

    from tests.tasks.conftest import TinyModels

# A runner that knows one word, so that reading and tokenizing are what takes time.
PROGRAM = """
import sys
from pathlib import Path
import numpy as np
import qdq

class Runner:
    input_names = ("input_ids", "attention_mask")
    output_names = ("logits",)

    def __call__(self, inputs):
        praise = (inputs["input_ids"] == GOOD).any(axis=1)
        return {"logits": np.stack([~praise, praise], axis=1).astype(np.float32)}

folder, data = sys.argv[1:]
GOOD = qdq.load_tokenizer(Path(folder)).token_to_id("good")
found = qdq.evaluate(Runner(), "sequence-classification", data, folder=folder, resamples=100, batch_size=256)
peak = int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0]) / 1024
print(found.examples, found.metrics["accuracy"], peak)
"""


def run(folder: Path, data: Path) -> tuple[int, float, float]:
    """Examples, accuracy, and the peak of the resident memory in MB."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder), str(data)], capture_output=True, text=True, check=True
    )
    examples, accuracy, peak = done.stdout.split()
    return int(examples), float(accuracy), float(peak)


@pytest.mark.slow
def test_a_million_lines(tiny_models: TinyModels, tmp_path: Path) -> None:
    folder = tiny_models.save(tmp_path / "model", "sequence-classification")
    lines = [
        f"film number {n} was {'good' if n % 2 else 'bad'} {'and long ' * (n % 5)}\t{n % 2}\n" for n in range(10_000)
    ]
    files = {times: tmp_path / f"{times}.tsv" for times in (5, 100)}
    for times, path in files.items():
        with path.open("w") as file:
            for _ in range(times):
                file.writelines(lines)
    few, many = run(folder, files[5]), run(folder, files[100])
    assert (few[0], many[0]) == (50_000, 1_000_000)
    assert few[1] == many[1] == 1
    # 950,000 examples more: 16 bytes each, twice while the columns grow and a few times over when the metrics are
    # computed; their text alone would be 30 MB in the file and ten times that in Python
    assert many[2] - few[2] < 160
