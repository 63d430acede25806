"""A model of the size of bert-base: the memory that its export and its verification take."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from calibration import calibrate
from exporters.export_model import wrap_for_export
from exporters.io_signature import example_inputs
from qdq.checkpoint import save
from qdq.models.huggingface import save_model
from qdq.models.registry import build, configure
from qdq.recipes.apply import quantize
from qdq.recipes.recipe import load_recipe

if TYPE_CHECKING:
    from collections.abc import Callable

MOST = 3.0
"""Times the float checkpoint."""

PEAK = """
import resource, subprocess, sys
done = subprocess.run([sys.executable, "-m", "qdq", *sys.argv[1:]])
print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)  # of that command alone
sys.exit(done.returncode)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``float`` and ``quantized``, random weights and real shapes."""
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    model = build(configure("bert")).eval()
    save_model(model, folder / "float")
    recipe = load_recipe("onnxruntime")
    quantize(model, recipe)
    inputs: Any = wrap_for_export(model).signature.inputs
    calibrate(model, [example_inputs(inputs, batch_size=1, seq_len=16, vocab_size=model.config.vocab_size)])
    save(model, folder / "quantized", recipe=recipe, calibration={"name": "max"}, source=folder / "float")
    return folder


@pytest.fixture
def peak(folder: Path) -> Callable[..., float]:
    """Runs a command, which must end well: its largest resident memory, in times the float checkpoint."""
    size = (folder / "float" / "model.safetensors").stat().st_size
    assert size > 400_000_000

    def peak(*arguments: object) -> float:
        root = Path(__file__).parents[2]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), *filter(None, sys.path)])}
        command = [sys.executable, "-c", PEAK, *map(str, arguments), "-q"]
        begun = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
        found = int(done.stdout.split()[-1]) * 1024 / size
        print(f"\nqdq {arguments[0]}: {found:.2f} x {size / 1e6:.0f} MB, {time.monotonic() - begun:.0f} s")
        return found

    return peak


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the unit of ru_maxrss is another one elsewhere")
@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt"])
def test_export_and_proof_take_less_than_three_times_the_checkpoint(
    target: str, folder: Path, peak: Callable[..., float], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert peak("export", "-m", folder / "quantized", "-o", out, "--target", target) < MOST
    assert peak("verify", "-m", folder / "quantized", out) < MOST
