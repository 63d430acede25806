"""The scaling of the scores moves into the query; the numbers stay."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest

from exporters.onnx.passes.scale_query import ScaleQueryPass

if TYPE_CHECKING:
    from tests.exporters.onnx.conftest import Graphs

RNG = np.random.default_rng(0)
X = RNG.normal(size=(1, 4, 8)).astype(np.float32)


def _graph(scaling: str, *, weight: str = "float", query_reader: str = "", quantized: bool = True) -> str:
    """Query and key of one head; scores are scaled by ``scaling``."""
    floats = ", ".join(f"{value:.4f}" for value in RNG.normal(size=64))
    integers = ", ".join(str(value) for value in RNG.integers(-127, 127, size=64))
    stored = f"<float[8,8] w = {{{floats}}}" if weight == "float" else f"<int8[8,8] wq = {{{integers}}}"
    dequantized = "" if weight == "float" else "w = DequantizeLinear <axis = 1> (wq, ws, wz)"
    query = "qq = QuantizeLinear (qt, s, z)  qd = DequantizeLinear (qq, s, z)" if quantized else "qd = Identity (qt)"
    if not quantized:
        query = query.replace("Identity (qt)", "Reshape (qt, whole)")
    return f"""g (float[1,4,8] x) => (float[1,4,4] y{query_reader and ", float[1,4,8] extra"})
    {stored}, float[8] b = {{1, 2, 3, 4, 5, 6, 7, 8}}, float s = {{0.05}}, int8 z = {{0}}, float c = {{5.656854}},
     float[8] ws = {{0.01, 0.02, 0.03, 0.04, 0.01, 0.02, 0.03, 0.04}}, int8[8] wz = {{0, 0, 0, 0, 0, 0, 0, 0}},
     int64[3] shape = {{1, 4, 8}}, int64[3] whole = {{1, 4, 8}}, float negative = {{-2}}>
    {{
      {dequantized}
      m = MatMul (x, w)
      a = Add (m, b)
      qt = Reshape (a, shape)
      {query}
      {query_reader}
      k = Transpose <perm = [0, 2, 1]> (x)
      scores = MatMul (qd, k)
      scaled = {scaling}
      y = Softmax (scaled)
    }}"""


@pytest.mark.parametrize("scaling", ["Div (scores, c)", "Mul (scores, c)", "Mul (c, scores)"])
@pytest.mark.parametrize("weight", ["float", "int8"])
def test_case_1_bias_and_scales_take_the_factor(graphs: Graphs, scaling: str, weight: str) -> None:
    model = graphs.parse(_graph(scaling, weight=weight))
    before = graphs.operators(model)
    integers = None if weight == "float" else graphs.array(model, "wq").copy()
    assert graphs.apply(ScaleQueryPass(), model, x=X)
    after = graphs.operators(model)
    assert len(after) == len(before) - 1
    assert "Div" not in after
    assert "Mul" not in after
    if integers is not None:
        np.testing.assert_array_equal(graphs.array(model, "wq"), integers)


def test_case_1_the_integers_of_the_query_stay(graphs: Graphs) -> None:
    model = graphs.parse(_graph("Div (scores, c)", weight="int8"))
    found = []
    for _ in range(2):
        quantize = next(node for node in model.graph if node.op_type == "QuantizeLinear")
        model.graph.outputs.append(quantize.outputs[0])
        quantize.outputs[0].type = ir.TensorType(ir.DataType.INT8)
        found.append(graphs.run(model, x=X)["qq"])
        model.graph.outputs.pop()
        ScaleQueryPass()(model)
    np.testing.assert_array_equal(found[0], found[1])


def test_case_1_a_query_without_quantizer(graphs: Graphs) -> None:
    model = graphs.parse(_graph("Div (scores, c)", quantized=False))
    assert graphs.apply(ScaleQueryPass(), model, x=X)


def test_case_2_a_shared_weight_keeps_its_scales_for_the_others(graphs: Graphs) -> None:
    model = graphs.parse(_graph("Div (scores, c)", weight="int8", query_reader="extra = MatMul (x, w)"))
    before = graphs.array(model, "ws").copy()
    assert graphs.apply(ScaleQueryPass(), model, x=X)
    np.testing.assert_array_equal(graphs.array(model, "ws"), before)
    assert graphs.operators(model).count("DequantizeLinear") == 3


@pytest.mark.parametrize(
    ("scaling", "reader"),
    [("Mul (scores, negative)", ""), ("Sub (scores, c)", ""), ("Div (c, scores)", ""), ("Div (scores, c)", "qd")],
    ids=["negative", "no scaling", "turned over", "query with another reader"],
)
def test_case_3_anything_else_is_left_alone(graphs: Graphs, scaling: str, reader: str) -> None:
    extra = f"extra = Relu ({reader})" if reader else ""
    model = graphs.parse(_graph(scaling, query_reader=extra))
    assert not graphs.apply(ScaleQueryPass(), model, x=X)
