from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from exporters.onnx.inspect import inspect_graph
from qdq.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from tests.exporters.conftest import TinyModels

LINEARS = (
    *(f"attention.{name}" for name in ("query", "key", "value", "output")),
    "feed_forward.up",
    "feed_forward.down",
)


@pytest.mark.parametrize(
    ("target", "linears", "attention"),
    [
        (None, "float", "float"),
        ("onnxruntime", "int8", "float"),
        ("openvino", "int8", "float"),
        ("tensorrt", "int8", "int8"),
    ],
)
def test_every_product_and_what_it_runs_in(
    tiny_models: TinyModels, target: str | None, linears: str, attention: str
) -> None:
    report = inspect_graph(tiny_models.exported(target)[1])
    found = {
        product.name.removeprefix("encoder.layers.0."): (product.kind, product.runs_in) for product in report.products
    }
    products = {f"attention.{name}/MatMul": ("attention", attention) for name in ("scores", "context")}
    assert found == {
        **{f"{name}/MatMul": ("linear", linears) for name in LINEARS},
        **({"attention/Attention": ("attention", attention)} if target == "onnxruntime" else products),
        "pooler.dense/Gemm": ("linear", "float"),
    }
    assert ("INT8" in report.bytes_by_type) == (target is not None)
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()


def test_what_is_no_onnx_file_is_said_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"garbage")
    with pytest.raises(CheckpointError, match="not an ONNX file"):
        inspect_graph(tmp_path / "model.onnx")
