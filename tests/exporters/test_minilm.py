"""The real model: calibrated once on the text that ships with the package, exported for every target.

By default its first two layers, which are as real as the rest; ``-m slow`` takes all six.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from calibration import calibrate
from exporters.onnx.export import export_onnx
from exporters.runners import OnnxRuntimeRunner, OpenVINORunner, Runner, TorchRunner
from exporters.verification.verify import cosine, verify
from qdq.checkpoint import load
from qdq.data.source import draw
from qdq.data.text import encode_batches, read_samples, sample_text
from qdq.data.tokenizer import load_tokenizer
from qdq.recipes.apply import quantize

if TYPE_CHECKING:
    from pathlib import Path

    from qdq.models.model import Model

TARGETS = ("onnxruntime", "openvino", "tensorrt")
RUNTIMES = {"onnxruntime": "onnxruntime", "openvino": "openvino", "tensorrt": "reference"}


@dataclass(frozen=True)
class Files:
    """The float model, and for every target the model that the file was made from; ``None`` is float."""

    folder: Path
    layers: int
    models: dict[str | None, Model]
    paths: dict[str | None, Path]
    heldout: list[dict[str, torch.Tensor]]
    expected: np.ndarray


def embed(runner: Runner, batches: list[dict[str, torch.Tensor]]) -> np.ndarray:
    """Sentence embeddings ``(sentences, hidden)``: the mean of the token vectors."""
    sentences = []
    for batch in batches:
        arrays = {name: value.numpy() for name, value in batch.items()}
        hidden, mask = runner(arrays)["last_hidden_state"], arrays["attention_mask"][..., np.newaxis]
        sentences.append((hidden * mask).sum(axis=1) / mask.sum(axis=1))
    return np.concatenate(sentences)


def first_layers(source: Path, target: Path, count: int) -> Path:
    """A copy of a checkpoint without the layers behind the first ``count``."""
    shutil.copytree(source, target)
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "num_hidden_layers": count}))
    layer = re.compile(r"\blayer\.(\d+)\.")
    kept = {
        name: tensor
        for name, tensor in load_file(source / "model.safetensors").items()
        if (found := layer.search(name)) is None or int(found[1]) < count
    }
    save_file(kept, target / "model.safetensors")
    return target


@pytest.fixture(scope="module", params=[2, pytest.param(6, marks=pytest.mark.slow)], ids=["2-layers", "6-layers"])
def minilm(minilm_dir: Path, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("minilm")
    source = first_layers(minilm_dir, folder / "model", request.param)
    tokenizer = load_tokenizer(source)

    def batches(name: str, samples: int) -> list[dict[str, torch.Tensor]]:
        texts = draw(read_samples(sample_text(name)), samples, seed=0)
        return list(encode_batches(texts, tokenizer, batch_size=16, seq_len=128))

    heldout = batches("heldout", 32)
    models: dict[str | None, Model] = {None: load(source)}
    calibrated = load(source)
    quantize(calibrated, "onnxruntime")
    calibrate(calibrated, batches("calibration", 48))
    paths: dict[str | None, Path] = {}
    for target in (None, *TARGETS):
        if target is not None:
            models[target] = copy.deepcopy(calibrated)
        paths[target] = folder / f"{target}.onnx"
        export_onnx(models[target], paths[target], target=target)
    return Files(source, request.param, models, paths, heldout, embed(TorchRunner(models[None]), heldout))


def test_float_export_equals_transformers(minilm: Files) -> None:
    theirs = transformers.AutoModel.from_pretrained(minilm.folder).eval()
    run = OnnxRuntimeRunner(minilm.paths[None])
    for batch in minilm.heldout[:2]:
        with torch.no_grad():
            expected = theirs(**batch)
        found = run({name: value.numpy() for name, value in batch.items()})
        mask = batch["attention_mask"].numpy() != 0
        np.testing.assert_allclose(
            found["last_hidden_state"][mask], expected.last_hidden_state.numpy()[mask], atol=1e-4
        )
        np.testing.assert_allclose(found["pooler_output"], expected.pooler_output.numpy(), atol=1e-4)


def test_the_file_is_about_a_quarter_of_the_float_one(minilm: Files) -> None:
    sizes = {target: path.stat().st_size for target, path in minilm.paths.items()}
    assert sizes["onnxruntime"] <= 0.27 * sizes[None]
    assert sizes["openvino"] <= 0.27 * sizes[None]
    names = ("embeddings.", "pooler.")  # float in this target
    in_float = sum(4 * p.numel() for name, p in minilm.models[None].named_parameters() if name.startswith(names))
    assert sizes["tensorrt"] <= in_float + 0.27 * (sizes[None] - in_float)
    if minilm.layers == 6:
        assert sizes["tensorrt"] <= 0.66 * sizes[None]


@pytest.mark.parametrize(("target", "least"), [("onnxruntime", 0.985), ("openvino", 0.98), ("tensorrt", 0.97)])
def test_sentences_it_was_not_calibrated_on_keep_their_embedding(minilm: Files, target: str, least: float) -> None:
    path = minilm.paths[target]
    run: Any = OpenVINORunner(path) if target == "openvino" else OnnxRuntimeRunner(path, optimize=target != "tensorrt")
    assert cosine(minilm.expected, embed(run, minilm.heldout)) >= least


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_is_proven(minilm: Files, target: str) -> None:
    shapes = ((2, 32), (3, 96))
    batches = [
        {name: value[:rows, :length] for name, value in batch.items()}
        for batch, (rows, length) in zip(minilm.heldout, shapes, strict=False)
    ]
    report = verify(minilm.models[target], minilm.paths[target], batches, runtime=RUNTIMES[target])
    assert report.problems == []
    assert report.runtime.startswith("openvino" if target == "openvino" else "onnxruntime")
    assert sum(row.ties for row in report.segments) <= 1e-5 * sum(row.values for row in report.segments)


def test_onnx_runtime_runs_the_integer_products_and_no_slow_fusion(minilm: Files, tmp_path: Path) -> None:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(minilm.paths["onnxruntime"], options, providers=["CPUExecutionProvider"])
    kinds = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert kinds["MatMulIntegerToFloat"] == 6 * minilm.layers
    assert not {"SkipLayerNormalization", "BiasGelu", "EmbedLayerNormalization"} & set(kinds)
    assert kinds["LayerNormalization"] == 2 * minilm.layers + 1
    assert kinds["Gelu"] == minilm.layers
    assert kinds["QuantizeLinear"] == 4 * minilm.layers
