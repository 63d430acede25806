"""A million lines, through reading, tokenizing and batching, in the memory of one window."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path

LINES = 1_000_000

PROGRAM = """
import resource, sys
from pathlib import Path
from qdq.data.batches import make_batches
from qdq.data.tokenizer import load_encoder
from qdq.data.examples import read_examples

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

encoder = load_encoder(Path(sys.argv[2]), max_length=512)
examples = read_examples(sys.argv[1], "sequence-classification", need_labels=True)
rows = early = 0
for batch in make_batches(examples, encoder, "sequence-classification", batch_size=256, max_length=16):
    rows += len(batch.index)
    early = peak() if rows <= 20_000 else early
drawn = sum(1 for _ in read_examples(sys.argv[1], "sequence-classification", num_samples=100))
print(rows, drawn, early, peak())
"""


@pytest.mark.slow
def test_a_million_lines(tmp_path: Path, minilm_dir: Path) -> None:
    path = tmp_path / "a.tsv"
    with path.open("w") as file:
        file.writelines(f"a film of {n} scenes\t{n % 2}\n" for n in range(LINES))
    command = [sys.executable, "-c", PROGRAM, str(path), str(minilm_dir)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    rows, drawn, early, peak = map(int, result.stdout.split())
    assert (rows, drawn) == (LINES, 100)
    # in MiB. The lines alone are 24, as examples 300, as tensors 400: none of these may stay
    assert peak - early < 60
