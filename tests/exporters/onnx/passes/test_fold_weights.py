from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from exporters.onnx.passes.fold_weights import FoldWeightsPass

if TYPE_CHECKING:
    from tests.exporters.onnx.conftest import Graphs


def test_case_1_one_scale_ties_go_to_even_and_values_saturate(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (float[n,3] x) => (float[n,2] y)
        <float[3,2] w = {0.5, 1.5, 2.5, -0.5, 200.0, -200.0}, float s = {1.0}, int8 z = {0}> {
            q = QuantizeLinear(w, s, z)
            d = DequantizeLinear(q, s, z)
            y = MatMul(x, d)
        }""")
    assert graphs.apply(FoldWeightsPass(), model, x=np.float32([[1, 2, 3]]))
    assert graphs.operators(model) == ["DequantizeLinear", "MatMul"]
    stored = graphs.array(model, "w_quantized")
    assert stored.dtype == np.int8
    assert stored.tolist() == [[0, 2], [2, 0], [127, -128]]


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_case_1_a_scale_and_a_zero_point_for_each_index_of_an_axis(graphs: Graphs, axis: int) -> None:
    model = graphs.parse(f"""
        g () => (float[2,2] y)
        <float[2,2] w = {{1.0, 2.0, 3.0, 4.0}}, float[2] s = {{1.0, 0.5}}, uint8[2] z = {{10, 20}}> {{
            q = QuantizeLinear<axis={axis}>(w, s, z)
            y = DequantizeLinear<axis={axis}>(q, s, z)
        }}""")
    assert graphs.apply(FoldWeightsPass(), model)
    by_column = [[11, 24], [13, 28]]
    by_row = [[11, 12], [26, 28]]
    assert graphs.array(model, "w_quantized").tolist() == (by_row if axis in (0, -2) else by_column)


def test_case_1_the_division_is_a_true_one_in_float32(graphs: Graphs) -> None:
    scale = np.float32(0.1)
    ties = (np.arange(-127, 127) + 0.5).astype(np.float32) * scale
    weight = np.concatenate([ties, np.nextafter(ties, np.float32(99)), np.nextafter(ties, np.float32(-99))])
    reciprocal = np.rint(weight * (np.float32(1) / scale))
    model = graphs.parse(f"""
        g () => (float[762] y)
        <float[762] w = {{{", ".join(repr(float(value)) for value in weight)}}}, float s = {{0.1}}, int8 z = {{0}}> {{
            q = QuantizeLinear(w, s, z)
            y = DequantizeLinear(q, s, z)
        }}""")
    expected = graphs.run(model)["y"]
    FoldWeightsPass()(model)
    np.testing.assert_array_equal(graphs.run(model)["y"], expected)
    assert (graphs.array(model, "w_quantized") != reciprocal).any()  # or these values could not tell


@pytest.mark.parametrize(("low", "high"), [(-127, 127), (-8, 7)], ids=["narrow range", "4 bits"])
def test_case_2_the_clip_is_folded_in(graphs: Graphs, low: int, high: int) -> None:
    model = graphs.parse(f"""
        g () => (float[4] y)
        <float[4] w = {{-500.0, -8.4, 3.0, 500.0}}, float s = {{1.0}}, int8 z = {{0}},
         int8 low = {{{low}}}, int8 high = {{{high}}}> {{
            q = QuantizeLinear(w, s, z)
            c = Clip(q, low, high)
            y = DequantizeLinear(c, s, z)
        }}""")
    assert graphs.apply(FoldWeightsPass(), model)
    assert graphs.operators(model) == ["DequantizeLinear"]
    assert graphs.array(model, "w_quantized").tolist() == [low, -8, 3, high]


def test_case_2_bounds_that_are_computed_cannot_be_folded(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (int8 low) => (float[2] y)
        <float[2] w = {-5.0, 5.0}, float s = {1.0}, int8 z = {0}, int8 high = {7}> {
            q = QuantizeLinear(w, s, z)
            c = Clip(q, low, high)
            y = DequantizeLinear(c, s, z)
        }""")
    assert not graphs.apply(FoldWeightsPass(), model, low=np.array(-2, np.int8))


def test_case_3_activations_are_left_alone(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (float[n] x) => (float[n] y) <float s = {0.5}, int8 z = {3}> {
            q = QuantizeLinear(x, s, z)
            y = DequantizeLinear(q, s, z)
        }""")
    assert not graphs.apply(FoldWeightsPass(), model, x=np.float32([1, 2]))


def test_case_4_a_zero_point_behind_a_cast_becomes_a_constant(graphs: Graphs) -> None:
    model = graphs.parse("""
        g () => (float[2,2] y)
        <float[2,2] w = {1.0, 2.0, 3.0, 4.0}, float[2] s = {1.0, 0.5}, int32[2] wide = {-3, 5}> {
            z = Cast<to=3>(wide)
            q = QuantizeLinear<axis=0>(w, s, z)
            y = DequantizeLinear<axis=0>(q, s, z)
        }""")
    assert graphs.apply(FoldWeightsPass(), model)
    assert graphs.operators(model) == ["DequantizeLinear"]
    assert graphs.array(model, "w_quantized").tolist() == [[-2, -1], [11, 13]]


def test_case_4_of_an_activation_is_a_change_too(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (float[n] x) => (float[n] y) <float s = {0.5}, int32 wide = {-3}> {
            z = Cast<to=3>(wide)
            q = QuantizeLinear(x, s, z)
            y = DequantizeLinear(q, s, z)
        }""")
    assert graphs.apply(FoldWeightsPass(), model, x=np.float32([1, 2]))
    assert graphs.operators(model) == ["QuantizeLinear", "DequantizeLinear"]


def test_a_weight_with_two_readers_is_stored_once(graphs: Graphs) -> None:
    model = graphs.parse("""
        g () => (float[2] y, float[2] z)
        <float[2] w = {1.0, 2.0}, float s = {1.0}, int8 zero = {0}> {
            q = QuantizeLinear(w, s, zero)
            y = DequantizeLinear(q, s, zero)
            p = QuantizeLinear(w, s, zero)
            z = DequantizeLinear(p, s, zero)
        }""")
    assert graphs.apply(FoldWeightsPass(), model)
    assert sum(name.startswith("w_quantized") for name in model.graph.initializers) == 1


def test_one_weight_on_two_grids_is_stored_twice(graphs: Graphs) -> None:
    model = graphs.parse("""
        g () => (float[2] y, float[2] z)
        <float[2] w = {1.0, 2.0}, float s = {1.0}, float t = {0.5}, int8 zero = {0}> {
            q = QuantizeLinear(w, s, zero)
            y = DequantizeLinear(q, s, zero)
            p = QuantizeLinear(w, t, zero)
            z = DequantizeLinear(p, t, zero)
        }""")
    assert graphs.apply(FoldWeightsPass(), model)
    assert sum(name.startswith("w_quantized") for name in model.graph.initializers) == 2


def test_without_a_zero_point_it_is_not_ours(graphs: Graphs) -> None:
    model = graphs.parse("""
        g () => (float[2] y) <float[2] w = {1.0, 2.0}, float s = {1.0}> {
            q = QuantizeLinear(w, s)
            y = DequantizeLinear(q, s)
        }""")
    assert not graphs.apply(FoldWeightsPass(), model)
