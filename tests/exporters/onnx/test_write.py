"""Files that are written weight by weight, read by everything that reads ONNX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from exporters.onnx.write import write_onnx
from exporters.runners import OnnxRuntimeRunner, OpenVINORunner

if TYPE_CHECKING:
    from pathlib import Path

    from tests.exporters.onnx.conftest import Graphs

RANDOM = np.random.default_rng(0)
LARGE = RANDOM.normal(size=(300, 200)).astype(np.float32)


@pytest.fixture
def model(graphs: Graphs) -> ir.Model:
    model: ir.Model = graphs.parse("""
        g (float[n,300] x, float[300,200] w) => (float[n,200] y) <float[1] b = {0.5}> {
            m = MatMul(x, w)
            y = Add(m, b)
        }""")
    model.metadata_props["made"] = "here"
    weight = model.graph.inputs.pop()
    weight.const_value = ir.tensor(LARGE, name="w")
    model.graph.initializers.add(weight)
    return model


def by_name(proto: onnx.ModelProto) -> dict[str, bytes]:
    return {weight.name: weight.SerializeToString(deterministic=True) for weight in proto.graph.initializer}


def test_the_file_holds_what_protobuf_would_have_written(model: ir.Model, tmp_path: Path) -> None:
    expected = ir.to_proto(model)
    write_onnx(model, tmp_path / "model.onnx")
    proto = onnx.load(tmp_path / "model.onnx")
    onnx.checker.check_model(proto, full_check=True)
    assert by_name(proto) == by_name(expected)
    for found in (proto, expected):
        found.graph.ClearField("initializer")
        found.graph.ClearField("value_info")  # of weights, which say it themselves
    assert proto == expected
    assert (tmp_path / "model.onnx").stat().st_size == pytest.approx(LARGE.nbytes, rel=0.01)


@pytest.mark.parametrize("runtime", [OnnxRuntimeRunner, OpenVINORunner])
def test_runtimes_read_it(model: ir.Model, runtime: Any, tmp_path: Path) -> None:
    write_onnx(model, tmp_path / "model.onnx")
    x = RANDOM.normal(size=(2, 300)).astype(np.float32)
    found = runtime(tmp_path / "model.onnx")({"x": x})["y"]
    np.testing.assert_allclose(found, x @ LARGE + 0.5, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", [ir.DataType.INT4, ir.DataType.BFLOAT16, ir.DataType.FLOAT8E4M3FN, ir.DataType.BOOL])
def test_types_that_numpy_has_not(kind: ir.DataType, tmp_path: Path) -> None:
    array = RANDOM.integers(0, 2, size=(512, 333)).astype(kind.numpy())
    weight = ir.Value(name="w", const_value=ir.Tensor(array, dtype=kind, name="w"))
    weight.shape, weight.dtype = ir.Shape(array.shape), kind
    graph = ir.Graph([], [weight], nodes=[], initializers=[weight], opset_imports={"": 21}, name="g")
    write_onnx(ir.Model(graph, ir_version=10), tmp_path / "model.onnx")
    found = ir.load(tmp_path / "model.onnx").graph.initializers["w"].const_value
    assert found is not None
    assert found.dtype == kind
    np.testing.assert_array_equal(found.numpy(), array)


def test_the_model_stays_as_it_was(model: ir.Model, tmp_path: Path) -> None:
    before = set(model.graph.initializers)
    write_onnx(model, tmp_path / "model.onnx")
    assert set(model.graph.initializers) == before
    write_onnx(model, tmp_path / "again.onnx")
    assert by_name(onnx.load(tmp_path / "again.onnx")) == by_name(onnx.load(tmp_path / "model.onnx"))
