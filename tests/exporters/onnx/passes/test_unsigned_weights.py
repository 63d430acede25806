from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from exporters.onnx.passes.unsigned_weights import UnsignedWeightsPass

if TYPE_CHECKING:
    from tests.exporters.onnx.conftest import Graphs

X = np.float32([[1, 2, 3, 4]])
LINEAR = """
    g (float[n,4] x) => (float[n,2] y)
    <float a = {{1.0}}, uint8 b = {{3}}, int8[{rows},{columns}] w = {{{weight}}},
     float[2] s = {{0.5, 1.0}}, int8[2] z = {{0, 1}}> {{
        q = QuantizeLinear(x, a, b)
        p = DequantizeLinear(q, a, b)
        d = DequantizeLinear<axis={axis}>(w, s, z)
        y = {product}(p, d)
    }}"""
SAFE = "127, -127, -127, 127, 64, -64, 64, 64"
NEIGHBOURS = "64, 1, 65, 1, 2, -1, 3, -1"  # 64 and 65, one above the other


@pytest.mark.parametrize("weight", [NEIGHBOURS, "127, 1, 2, 1, 0, -100, 3, -29"], ids=["positive", "negative"])
def test_case_1_pairs_along_the_inputs_that_could_saturate(graphs: Graphs, weight: str) -> None:
    model = graphs.parse(LINEAR.format(rows=4, columns=2, weight=weight, axis=1, product="MatMul"))
    stored = graphs.array(model, "w")
    assert graphs.apply(UnsignedWeightsPass(), model, x=X)
    dequantize = model.graph[2]
    shifted, zeros = (dequantize.inputs[index].const_value.numpy() for index in (0, 2))
    assert shifted.dtype == zeros.dtype == np.uint8
    np.testing.assert_array_equal(shifted.astype(int) - 128, stored)
    assert zeros.tolist() == [128, 129]


def test_case_1_a_gemm_with_the_weight_transposed(graphs: Graphs) -> None:
    product = "Gemm<transB=1>"
    in_columns = "64, 65, 2, 3, 1, 1, -1, -1"
    model = graphs.parse(LINEAR.format(rows=2, columns=4, weight=in_columns, axis=0, product=product))
    assert graphs.apply(UnsignedWeightsPass(), model, x=X)
    across_outputs = "64, 1, 1, 1, 65, 1, 1, 1"  # neighbours in storage that no kernel adds up
    model = graphs.parse(LINEAR.format(rows=2, columns=4, weight=across_outputs, axis=0, product=product))
    assert not graphs.apply(UnsignedWeightsPass(), model, x=X)


def test_case_1_a_table_that_the_product_reads_transposed(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (int64[n] i, float[n,4] x) => (float[n,2] y, float[n,4] e)
        <float a = {1.0}, uint8 b = {3}, int8[2,4] w = {64, 65, 2, 3, 1, 1, -1, -1},
         float[2] s = {0.5, 1.0}, int8[2] z = {0, 1}> {
            q = QuantizeLinear(x, a, b)
            p = DequantizeLinear(q, a, b)
            d = DequantizeLinear<axis=0>(w, s, z)
            e = Gather(d, i)
            t = Transpose(d)
            y = MatMul(p, t)
        }""")
    assert graphs.apply(UnsignedWeightsPass(), model, x=X, i=np.int64([1]))
    assert graphs.operators(model).count("DequantizeLinear") == 2, "one for all readers of the table"
    assert model.graph[2].inputs[0].const_value.numpy().dtype == np.uint8


def test_case_2_no_pair_can_saturate(graphs: Graphs) -> None:
    model = graphs.parse(LINEAR.format(rows=4, columns=2, weight=SAFE, axis=1, product="MatMul"))
    assert not graphs.apply(UnsignedWeightsPass(), model, x=X)


def test_case_3_activations_in_float_need_no_care(graphs: Graphs) -> None:
    model = graphs.parse(f"""
        g (float[n,4] x) => (float[n,2] y)
        <int8[4,2] w = {{{NEIGHBOURS}}}, float s = {{0.5}}, int8 z = {{0}}> {{
            d = DequantizeLinear(w, s, z)
            y = MatMul(x, d)
        }}""")
    assert not graphs.apply(UnsignedWeightsPass(), model, x=X)


def test_case_3_products_of_two_activations_are_left_alone(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (float[4,4] x) => (float[4,4] y) <float s = {0.5}, int8 z = {0}> {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            y = MatMul(d, d)
        }""")
    assert not graphs.apply(UnsignedWeightsPass(), model, x=np.repeat(X, 4, axis=0))
