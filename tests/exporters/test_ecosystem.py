"""Exported directories load unchanged in optimum-onnx and in sentence-transformers.

Both pin an older transformers than ours, so they live in an environment of their own, whose interpreter the environment
variable ``QDQ_OPTIMUM_PYTHON`` names (``pip install optimum-onnx[onnxruntime] sentence-transformers``). Without it the
tests are skipped; with it they take minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

from exporters.directory import export
from exporters.interface import ExportInterface
from exporters.runners import OnnxRuntimeRunner
from qdq.checkpoint import load, save
from qdq.data.text import TextSample, encode_batches
from qdq.data.tokenizer import load_tokenizer
from qdq.models.huggingface import save_model
from qdq.quantization.quantizer import Mode, set_mode
from qdq.recipes.apply import quantize
from qdq.recipes.recipe import load_recipe

if TYPE_CHECKING:
    from pathlib import Path

    from tests.exporters.conftest import TinyModels

CLASSES = {
    "feature-extraction": "FeatureExtraction",
    "sequence-classification": "SequenceClassification",
    "token-classification": "TokenClassification",
    "question-answering": "QuestionAnswering",
    "masked-lm": "MaskedLM",
    "multiple-choice": "MultipleChoice",
}
SCRIPT = """
import json, sys
import torch
import optimum.onnxruntime as optimum
request = json.load(sys.stdin)
model = getattr(optimum, request["class"]).from_pretrained(request["folder"])
inputs = {name: torch.tensor(values) for name, values in request["inputs"].items()}
output = model(**inputs)
print(json.dumps({name: value.tolist() for name, value in output.items() if hasattr(value, "tolist")}))
"""
SENTENCES = """
import json, sys
from sentence_transformers import SentenceTransformer
request = json.load(sys.stdin)
model = SentenceTransformer(request["folder"], backend="onnx")
print(json.dumps(model.encode(request["texts"]).tolist()))
"""


@pytest.fixture(scope="module")
def elsewhere() -> Any:
    """Runs a script in that environment: JSON in, JSON out."""
    python = os.environ.get("QDQ_OPTIMUM_PYTHON")
    if not python:
        pytest.skip("needs optimum-onnx and sentence-transformers: set QDQ_OPTIMUM_PYTHON to their interpreter")

    def run(script: str, request: dict[str, Any]) -> Any:
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        done = subprocess.run(
            [python, "-W", "ignore", "-c", script],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            check=False,
            env=environment,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.fixture
def folders(tiny_models: TinyModels, tmp_path: Path) -> Any:
    """A float checkpoint, and its exports in float and in int8, whose ranges need no data."""

    def make(task: str) -> dict[str, Path]:
        (tmp_path / "checkpoint").mkdir()
        model = tiny_models.model(task=task)
        save_model(model, tmp_path / "checkpoint")
        quantize(model, "dynamic")
        set_mode(model, Mode.QUANTIZE)
        record = {"name": "none"}
        source = tmp_path / "checkpoint"
        save(model, tmp_path / "quantized", recipe=load_recipe("dynamic"), calibration=record, source=source)
        export(source, tmp_path / "float", target=None)
        export(tmp_path / "quantized", tmp_path / "int8", target="onnxruntime")
        return {"float": tmp_path / "float", "int8": tmp_path / "int8"}

    return make


@pytest.mark.parametrize("task", CLASSES)
def test_optimum_loads_an_export_as_it_is(elsewhere: Any, folders: Any, tiny_models: TinyModels, task: str) -> None:
    made = folders(task)
    batch = tiny_models.batches(tiny_models.model(task=task))[0]
    request = {
        "class": f"ORTModelFor{CLASSES[task]}",
        "inputs": {name: value.tolist() for name, value in batch.items()},
    }
    with torch.no_grad():
        expected = load(made["float"].parent / "checkpoint", task)(**batch)
    exact = elsewhere(SCRIPT, {**request, "folder": str(made["float"])})
    close = elsewhere(SCRIPT, {**request, "folder": str(made["int8"])})
    assert exact
    for name, values in exact.items():
        reference = expected[name].numpy()
        np.testing.assert_allclose(np.array(values), reference, atol=1e-4, err_msg=name)
        assert np.corrcoef(np.ravel(close[name]), reference.ravel())[0, 1] > 0.99, name


def test_sentence_transformers_loads_an_export_as_it_is(elsewhere: Any, minilm_dir: Path, tmp_path: Path) -> None:
    export(minilm_dir, tmp_path / "float", target=None)
    texts = ["Quantized, and still the same.", "A second, somewhat longer text about nothing at all."]
    found = np.array(elsewhere(SENTENCES, {"folder": str(tmp_path / "float"), "texts": texts}))
    export(minilm_dir, tmp_path / "fused", target=None, interface=ExportInterface(pooling="mean", normalize=True))
    tokenizer = load_tokenizer(tmp_path / "fused")
    samples = [TextSample(text) for text in texts]
    (batch,) = encode_batches(samples, tokenizer, batch_size=2, seq_len=64, pad_token_id=0)
    inputs = {name: value.numpy() for name, value in batch.items()}
    expected = OnnxRuntimeRunner(tmp_path / "fused" / "model.onnx")(inputs)["sentence_embedding"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
