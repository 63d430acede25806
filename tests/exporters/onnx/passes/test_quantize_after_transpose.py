from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from exporters.onnx.passes.quantize_after_transpose import QuantizeAfterTransposePass

if TYPE_CHECKING:
    from tests.exporters.onnx.conftest import Graphs

X = np.float32([[[1.3, -2.0, 500.0], [0.5, 0.0, -7.0]]])
CLIPPED = """
    g (float[1,2,3] x) => (float[1,2,2] y)
    <float s = {{1.0}}, {dtype} z = {{{zero}}}, {dtype} a = {{{low}}}, {dtype} b = {{{high}}}> {{
        [slot] q = QuantizeLinear(x, s, z)
        {clip}
        d = DequantizeLinear({last}, s, z)
        t = Transpose<perm=[0,2,1]>(d)
        y = MatMul(x, t)
    }}"""


def test_case_1_the_transposition_comes_first(graphs: Graphs) -> None:
    model = graphs.parse(CLIPPED.format(dtype="int8", zero=3, low=0, high=0, clip="", last="q"))
    model.graph[0].name = "slot/QuantizeLinear"
    assert graphs.apply(QuantizeAfterTransposePass(), model, x=X)
    assert graphs.operators(model) == ["Transpose", "QuantizeLinear", "DequantizeLinear", "MatMul"]
    assert [node.name for node in model.graph][:2] == ["slot/Transpose", "slot/QuantizeLinear"]


@pytest.mark.parametrize(("dtype", "zero", "low", "high"), [("int8", 0, -127, 127), ("uint8", 8, 0, 15)])
def test_case_2_a_clip_between_moves_along(graphs: Graphs, dtype: str, zero: int, low: int, high: int) -> None:
    clip = "c = Clip(q, a, b)"
    model = graphs.parse(CLIPPED.format(dtype=dtype, zero=zero, low=low, high=high, clip=clip, last="c"))
    assert graphs.apply(QuantizeAfterTransposePass(), model, x=X)
    assert graphs.operators(model) == ["Transpose", "QuantizeLinear", "Clip", "DequantizeLinear", "MatMul"]


@pytest.mark.parametrize("clip", [False, True], ids=["int8", "narrow range"])
@pytest.mark.parametrize("opset", [19, 21, 24])
def test_onnx_runtime_loads_the_file_with_its_optimizations(graphs: Graphs, opset: int, clip: bool) -> None:
    chain = {"clip": "c = Clip(q, a, b)", "last": "c"} if clip else {"clip": "", "last": "q"}
    model = graphs.parse(CLIPPED.format(dtype="int8", zero=0, low=-127, high=127, **chain))
    model.graph.opset_imports[""] = opset
    expected = graphs.run(model, x=X)["y"]
    QuantizeAfterTransposePass()(model)
    np.testing.assert_array_equal(graphs.run(model, optimize=True, x=X)["y"], expected)


def test_an_output_keeps_its_name(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (float[2,3] x) => (float[3,2] y) <float s = {1.0}, int8 z = {3}> {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            y = Transpose<perm=[1,0]>(d)
        }""")
    assert graphs.apply(QuantizeAfterTransposePass(), model, x=X[0])
    assert graphs.operators(model) == ["Transpose", "QuantizeLinear", "DequantizeLinear"]


def test_case_3_a_scale_for_each_channel_is_left_alone(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (float[2,3] x) => (float[3,2] y) <float[2] s = {1.0, 2.0}, int8[2] z = {0, 0}> {
            q = QuantizeLinear<axis=0>(x, s, z)
            d = DequantizeLinear<axis=0>(q, s, z)
            y = Transpose<perm=[1,0]>(d)
        }""")
    assert not graphs.apply(QuantizeAfterTransposePass(), model, x=X[0])


def test_case_3_a_stored_weight_is_left_alone(graphs: Graphs) -> None:
    model = graphs.parse("""
        g () => (float[2,1] y) <float[1,2] w = {1.0, 2.0}, float s = {1.0}, int8 z = {0}> {
            q = QuantizeLinear(w, s, z)
            d = DequantizeLinear(q, s, z)
            y = Transpose<perm=[1,0]>(d)
        }""")
    assert not graphs.apply(QuantizeAfterTransposePass(), model)


@pytest.mark.parametrize("reader", ["other = Neg(d)", "p = DequantizeLinear(q, s, z)\n other = Neg(p)"])
def test_case_3_other_readers_between_leave_it_alone(graphs: Graphs, reader: str) -> None:
    model = graphs.parse(f"""
        g (float[2,3] x) => (float[3,2] y, float[2,3] other) <float s = {{1.0}}, int8 z = {{0}}> {{
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            y = Transpose<perm=[1,0]>(d)
            {reader}
        }}""")
    assert not graphs.apply(QuantizeAfterTransposePass(), model, x=X[0])


def test_case_3_a_tensor_that_is_an_output_too_is_left_alone(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (float[2,3] x) => (float[3,2] y, float[2,3] d) <float s = {1.0}, int8 z = {0}> {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            y = Transpose<perm=[1,0]>(d)
        }""")
    assert not graphs.apply(QuantizeAfterTransposePass(), model, x=X[0])
