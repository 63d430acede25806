from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from exporters.onnx.passes.gather_before_dequantize import GatherBeforeDequantizePass

if TYPE_CHECKING:
    from tests.exporters.onnx.conftest import Graphs

ROWS = np.int64([[3, 0], [-1, 1]])
TABLE = "int8[4,3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, -12}"


@pytest.mark.parametrize("zero", [0, 5], ids=["symmetric", "affine"])
def test_case_1_one_scale(graphs: Graphs, zero: int) -> None:
    model = graphs.parse(f"""
        g (int64[n,2] i) => (float[n,2,3] y) <{TABLE}, float s = {{0.5}}, int8 z = {{{zero}}}> {{
            d = DequantizeLinear(w, s, z)
            g = Gather(d, i)
            y = Identity(g)
        }}""")
    assert graphs.apply(GatherBeforeDequantizePass(), model, i=ROWS)
    assert graphs.operators(model) == ["Gather", "DequantizeLinear", "Identity"]


PER_ROW = "float[4] s = {0.5, 1.0, 2.0, 0.25}, int8[4] z = {0, 0, 0, 0}"


def test_case_2_a_scale_for_each_row(graphs: Graphs) -> None:
    model = graphs.parse(f"""
        g (int64[n,2] i) => (float[n,2,3] y) <{TABLE}, {PER_ROW}> {{
            [slot] d = DequantizeLinear<axis=0>(w, s, z)
            [word] g = Gather<axis=0>(d, i)
            y = Identity(g)
        }}""")
    expected = graphs.run(model, i=ROWS)["y"]
    assert graphs.apply(GatherBeforeDequantizePass(), model, i=ROWS)
    assert graphs.operators(model) == ["Gather", "Cast", "Gather", "Mul", "Identity"]
    assert [node.name for node in model.graph][:4] == ["word_rows", "word_values", "word_scales", "slot"]
    np.testing.assert_array_equal(graphs.run(model, i=ROWS)["y"], expected)


def test_case_4_one_zero_point_for_all_rows(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (int64[n,2] i) => (float[n,2,3] y) <uint8[4,3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 255},
          float[4] s = {0.5, 1.0, 2.0, 0.25}, uint8[4] z = {128, 128, 128, 128}> {
            [slot] d = DequantizeLinear<axis=0>(w, s, z)
            [word] y = Gather<axis=0>(d, i)
        }""")
    expected = graphs.run(model, i=ROWS)["y"]
    assert graphs.apply(GatherBeforeDequantizePass(), model, i=ROWS)
    assert graphs.operators(model) == ["Gather", "Cast", "Gather", "Sub", "Mul"]
    np.testing.assert_array_equal(graphs.run(model, i=ROWS)["y"], expected)


def test_two_look_ups_on_one_table_share_it(graphs: Graphs) -> None:
    model = graphs.parse(f"""
        g (int64[n,2] i, int64[n,2] j) => (float[n,2,3] y, float[n,2,3] z1) <{TABLE}, {PER_ROW}> {{
            d = DequantizeLinear<axis=0>(w, s, z)
            [first] y = Gather(d, i)
            [second] z1 = Gather(d, j)
        }}""")
    assert graphs.apply(GatherBeforeDequantizePass(), model, i=ROWS, j=ROWS.T.copy())
    assert "DequantizeLinear" not in graphs.operators(model)
    assert sorted(model.graph.initializers) == ["s", "s_column", "w", "z"]


def test_a_table_that_a_product_reads_too_stays_for_it(graphs: Graphs) -> None:
    model = graphs.parse(f"""
        g (int64[n,2] i, float[1,4] x) => (float[n,2,3] y, float[1,3] u) <{TABLE}, {PER_ROW}> {{
            d = DequantizeLinear<axis=0>(w, s, z)
            y = Gather(d, i)
            u = MatMul(x, d)
        }}""")
    assert graphs.apply(GatherBeforeDequantizePass(), model, i=ROWS, x=np.ones((1, 4), np.float32))
    assert graphs.operators(model).count("DequantizeLinear") == 1


def test_case_3_scales_of_another_axis_are_left_alone(graphs: Graphs) -> None:
    model = graphs.parse(f"""
        g (int64[n,2] i) => (float[n,2,3] y)
        <{TABLE}, float[3] s = {{0.5, 1.0, 2.0}}, int8[3] z = {{0, 0, 0}}> {{
            d = DequantizeLinear<axis=1>(w, s, z)
            y = Gather(d, i)
        }}""")
    assert not graphs.apply(GatherBeforeDequantizePass(), model, i=ROWS)


def test_case_3_zero_points_of_rows_are_left_alone(graphs: Graphs) -> None:
    model = graphs.parse(f"""
        g (int64[n,2] i) => (float[n,2,3] y)
        <{TABLE}, float[4] s = {{0.5, 1.0, 2.0, 4.0}}, int8[4] z = {{0, 0, 0, 1}}> {{
            d = DequantizeLinear<axis=0>(w, s, z)
            y = Gather(d, i)
        }}""")
    assert not graphs.apply(GatherBeforeDequantizePass(), model, i=ROWS)


def test_case_3_a_computed_table_is_left_alone(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (int64[n,2] i, int8[4,3] w) => (float[n,2,3] y) <float s = {0.5}, int8 z = {0}> {
            d = DequantizeLinear(w, s, z)
            y = Gather(d, i)
        }""")
    assert not graphs.apply(GatherBeforeDequantizePass(), model, i=ROWS, w=np.ones((4, 3), np.int8))


def test_looking_up_columns_is_left_alone(graphs: Graphs) -> None:
    model = graphs.parse(f"""
        g (int64[n] i) => (float[4,n] y) <{TABLE}, float s = {{0.5}}, int8 z = {{0}}> {{
            d = DequantizeLinear(w, s, z)
            y = Gather<axis=1>(d, i)
        }}""")
    assert not graphs.apply(GatherBeforeDequantizePass(), model, i=np.int64([2, 0]))


def test_float_tables_are_left_alone(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (int64[n] i) => (float[n,1] y) <float[2,1] w = {1.0, 2.0}> { y = Gather(w, i) }""")
    assert not graphs.apply(GatherBeforeDequantizePass(), model, i=np.int64([1, 0]))
