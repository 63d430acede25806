from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from exporters.onnx.passes.transpose_weights import TransposeWeightsPass

if TYPE_CHECKING:
    from tests.exporters.onnx.conftest import Graphs


@pytest.mark.parametrize("perm", ["<perm=[1,0]>", ""], ids=["perm given", "perm by default"])
def test_case_1_one_scale(graphs: Graphs, perm: str) -> None:
    model = graphs.parse(f"""
        g (float[n,2] x) => (float[n,3] y)
        <int8[3,2] w = {{1, 2, 3, 4, 5, 6}}, float s = {{0.5}}, int8 z = {{1}}> {{
            d = DequantizeLinear(w, s, z)
            t = Transpose{perm}(d)
            y = MatMul(x, t)
        }}""")
    assert graphs.apply(TransposeWeightsPass(), model, x=np.float32([[1, 10]]))
    assert graphs.operators(model) == ["DequantizeLinear", "MatMul"]
    assert graphs.array(model, "w_transposed").tolist() == [[1, 3, 5], [2, 4, 6]]
    assert "w" not in model.graph.initializers


@pytest.mark.parametrize(("axis", "moved"), [(0, 1), (-2, 1), (1, 0), (-1, 0)])
def test_case_1_a_scale_for_each_index_follows_its_axis(graphs: Graphs, axis: int, moved: int) -> None:
    size = 3 if moved == 1 else 2
    scales = ", ".join(str(0.5 + index) for index in range(size))
    zeros = ", ".join(str(index) for index in range(size))
    model = graphs.parse(f"""
        g (float[n,2] x) => (float[n,3] y)
        <int8[3,2] w = {{1, 2, 3, 4, 5, 6}}, float[{size}] s = {{{scales}}}, int8[{size}] z = {{{zeros}}}> {{
            [names] d = DequantizeLinear<axis={axis}>(w, s, z)
            t = Transpose<perm=[1,0]>(d)
            y = MatMul(x, t)
        }}""")
    assert graphs.apply(TransposeWeightsPass(), model, x=np.float32([[1, 10]]))
    dequantize = model.graph[0]
    assert (dequantize.name, dequantize.attributes["axis"].value) == ("names", moved)


def test_case_1_more_than_two_axes(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (float[1,2,1] x) => (float[1,2,3] y)
        <int8[3,1,2] w = {1, 2, 3, 4, 5, 6}, float[3] s = {1.0, 2.0, 4.0}, int8[3] z = {0, 0, 0}> {
            d = DequantizeLinear<axis=0>(w, s, z)
            t = Transpose<perm=[1,2,0]>(d)
            y = Add(x, t)
        }""")
    assert graphs.apply(TransposeWeightsPass(), model, x=np.float32([[[0], [1]]]))
    assert model.graph[0].attributes["axis"].value == 2


def test_case_2_a_tied_table_is_left_alone(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (float[n,2] x, int64[n] i) => (float[n,3] y, float[n,2] z)
        <int8[3,2] w = {1, 2, 3, 4, 5, 6}, float s = {0.5}, int8 zero = {0}> {
            d = DequantizeLinear(w, s, zero)
            t = Transpose(d)
            y = MatMul(x, t)
            z = Gather(d, i)
        }""")
    assert not graphs.apply(TransposeWeightsPass(), model, x=np.float32([[1, 10]]), i=np.int64([2]))


def test_case_2_integers_with_another_reader_are_left_alone(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (float[n,2] x, int64[n] i) => (float[n,3] y, int8[n,2] z)
        <int8[3,2] w = {1, 2, 3, 4, 5, 6}, float s = {0.5}, int8 zero = {0}> {
            d = DequantizeLinear(w, s, zero)
            t = Transpose(d)
            y = MatMul(x, t)
            z = Gather(w, i)
        }""")
    assert not graphs.apply(TransposeWeightsPass(), model, x=np.float32([[1, 10]]), i=np.int64([2]))


def test_activations_are_left_alone(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (int8[n,2] x) => (float[2,n] y) <float s = {0.5}, int8 zero = {0}> {
            d = DequantizeLinear(x, s, zero)
            y = Transpose<perm=[1,0]>(d)
        }""")
    assert not graphs.apply(TransposeWeightsPass(), model, x=np.int8([[1, 10]]))
