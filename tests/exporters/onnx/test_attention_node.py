"""Exports with attention as one node, beside those with single nodes: the same outputs to the bit in ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from exporters.interface import ExportInterface
from exporters.onnx.export import export_onnx

if TYPE_CHECKING:
    from pathlib import Path

    from tests.exporters.conftest import TinyModels

BATCH, SEQ = 3, 9


def masks() -> dict[str, np.ndarray]:
    full = np.ones((BATCH, SEQ), dtype=np.int64)
    right, left, holes, empty = (full.copy() for _ in range(4))
    right[1, 5:] = right[2, 1:] = 0
    left[1, :4] = 0
    holes[1, 1::2] = 0
    empty[1] = 0
    return {"full": full, "right-padded": right, "left-padded": left, "holes": holes, "nothing visible": empty}


DECODER = {"is_decoder": True, "add_cross_attention": True}
MODELS: dict[str, tuple[str, str, dict[str, object], int]] = {
    "bert": ("bert", "feature-extraction", {}, 1),
    "roberta": ("roberta", "masked-lm", {}, 1),
    "albert": ("albert", "sequence-classification", {}, 1),
    "pre-norm": ("megatron-bert", "token-classification", {}, 1),
    "causal": ("bert", "causal-lm", {"is_decoder": True}, 1),
    "relative positions keep their nodes": (
        "bert",
        "feature-extraction",
        {"position_embedding_type": "relative_key"},
        0,
    ),
}


@pytest.mark.parametrize(("family", "task", "fields", "nodes"), MODELS.values(), ids=MODELS.keys())
def test_outputs_are_the_same_to_the_bit(
    tiny_models: TinyModels, tmp_path: Path, family: str, task: str, fields: dict[str, object], nodes: int
) -> None:
    sessions = {}
    for opset in (21, 23):
        model = tiny_models.calibrated("onnxruntime", family, task, **fields)
        path = tmp_path / f"{opset}.onnx"
        export_onnx(model, path, target="onnxruntime", opset=opset)
        operators = Counter(node.op_type for node in onnx.load(path).graph.node)
        layers = model.config.num_hidden_layers
        assert operators["Attention"] == (nodes * layers if opset == 23 else 0)
        assert operators["Softmax"] == layers - operators["Attention"]
        sessions[opset] = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids = np.random.default_rng(0).integers(5, model.config.vocab_size, (BATCH, SEQ))
    given = {value.name for value in sessions[21].get_inputs()}
    for name, mask in masks().items():
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        inputs = {key: array for key, array in inputs.items() if key in given}
        wanted, found = (session.run(None, inputs) for session in sessions.values())
        for mine, other in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(mine, other, err_msg=name)


def test_a_cache_keeps_the_nodes(tiny_models: TinyModels, tmp_path: Path) -> None:
    interface = ExportInterface(cache="step")
    model = tiny_models.calibrated("onnxruntime", "bert", "causal-lm", interface=interface, is_decoder=True)
    export_onnx(model, tmp_path / "model.onnx", target="onnxruntime", interface=interface)
    assert "Attention" not in {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
