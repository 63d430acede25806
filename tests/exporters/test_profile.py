from __future__ import annotations

from typing import TYPE_CHECKING

import onnx
import pytest

from exporters.onnx.inspect import inspect_graph
from exporters.profile import NodeTime, Profile, profile
from qdq.errors import CheckpointError, ConfigError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.exporters.conftest import TinyModels

LINEARS = 6
SHAPE = {"batch_size": 2, "seq_len": 16}
# 32 x 32 four times, 32 x 48 twice, for every token; the attention's two products; the pooler for every text.
LINEAR_MACS = 2 * 16 * (4 * 32 * 32 + 2 * 32 * 48)
MACS = LINEAR_MACS + 2 * 2 * 16 * 16 * 32 + 2 * 32 * 32


@pytest.mark.parametrize(("target", "runtime"), [("onnxruntime", "onnxruntime"), ("openvino", "openvino")])
def test_linear_layers_run_in_int8(tiny_models: TinyModels, target: str, runtime: str) -> None:
    _, path, _ = tiny_models.exported(target)
    found = profile(path, runtime=runtime, threads=1, runs=2, warmup=1, **SHAPE)
    assert (found.runtime, found.batch_size, found.seq_len, found.runs) == (runtime, 2, 16, 2)
    quantized = [node for node in found.nodes if node.in_int8 and node.macs]
    assert len(quantized) == LINEARS
    assert sum(node.macs for node in quantized) == LINEAR_MACS
    assert found.macs == MACS
    assert found.share_of_macs == pytest.approx(LINEAR_MACS / MACS)
    assert 0 < found.share_of_time < 1
    assert all(node.seconds >= 0 for node in found.nodes)
    rows = found.by_operator()
    assert sum(row[2] for row in rows) == len(found.nodes)
    assert sum(row[3] for row in rows) == pytest.approx(found.seconds)
    assert [row[3] for row in rows] == sorted((row[3] for row in rows), reverse=True)
    assert any("pooler.dense" in node.name for node in found.products_in_float())


def test_a_float_file_has_nothing_in_int8(tiny_models: TinyModels) -> None:
    _, path, _ = tiny_models.exported(None)
    found = profile(path, threads=1, runs=1, warmup=0, **SHAPE)
    assert found.share_of_macs == 0
    assert len(found.products_in_float()) == LINEARS + 3
    assert found.macs == MACS


def test_the_report_is_plain_and_survives_nothing() -> None:
    nothing = Profile("onnxruntime", 1, 1, 1, (), 0)
    assert (nothing.share_of_time, nothing.share_of_macs) == (0, 0)
    one = Profile("onnxruntime", 1, 1, 1, (NodeTime("a", "MatMul", False, 0.5, 4),), 4)
    assert one.to_dict()["nodes"][0] == {"name": "a", "operator": "MatMul", "in_int8": False, "seconds": 0.5, "macs": 4}
    assert one.to_dict()["share_of_macs_in_int8"] == 0


def test_what_keeps_a_product_in_float_is_told(tiny_models: TinyModels) -> None:
    report = inspect_graph(tiny_models.exported("onnxruntime")[1])
    reasons = {product.name: product.why for product in report.products if product.why}
    assert reasons == {
        "encoder.layers.0.attention/Attention": "both products are in one node, which has no int8",
        "pooler.dense/Gemm": "neither operand is quantized",
    }


def test_what_cannot_be_profiled(tiny_models: TinyModels, tmp_path: Path) -> None:
    _, path, _ = tiny_models.exported(None)
    with pytest.raises(ConfigError, match="no runtime 'tflite': it must be one of onnxruntime, openvino"):
        profile(path, runtime="tflite")
    with pytest.raises(ConfigError, match="at least 1"):
        profile(path, runs=0)
    with pytest.raises(CheckpointError, match="no such model file"):
        profile(tmp_path / "missing.onnx")
    proto = onnx.load(path)
    for value in proto.graph.input:
        value.type.tensor_type.shape.dim[1].dim_value = 8
    onnx.save(proto, tmp_path / "fixed.onnx")
    with pytest.raises(ConfigError, match=r"tokens 16: .* takes exactly 8 tokens"):
        profile(tmp_path / "fixed.onnx", **SHAPE)
