from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from exporters.onnx.passes.unsigned_activations import UnsignedActivationsPass

if TYPE_CHECKING:
    from tests.exporters.onnx.conftest import Graphs

X = np.float32([-1000, -127, -3.5, -0.5, 0, 0.5, 126, 1000])
PAIR = """
    g (float[n] x) => (float[n] y) <float s = {{1.0}}, {dtype} z = {{{zero}}}> {{
        q = QuantizeLinear(x, s, z)
        y = DequantizeLinear(q, s, z)
    }}"""


@pytest.mark.parametrize("zero", [-128, -5, 0, 127])
def test_case_1_the_same_grid_in_uint8(graphs: Graphs, zero: int) -> None:
    model = graphs.parse(PAIR.format(dtype="int8", zero=zero))
    expected = graphs.run(model, x=X)["y"]
    assert graphs.apply(UnsignedActivationsPass(), model, x=X)
    quantize, dequantize = model.graph
    assert quantize.inputs[2] is dequantize.inputs[2]
    held = quantize.inputs[2].const_value.numpy()
    assert (held.dtype, int(held)) == (np.uint8, zero + 128)
    np.testing.assert_array_equal(graphs.run(model, x=X)["y"], expected)


def test_case_1_every_reader_is_told(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (float[n] x) => (float[n] y, float[n] u) <float s = {1.0}, int8 z = {0}> {
            q = QuantizeLinear(x, s, z)
            y = DequantizeLinear(q, s, z)
            u = DequantizeLinear(q, s, z)
        }""")
    assert graphs.apply(UnsignedActivationsPass(), model, x=X)


def test_case_1_two_quantizers_on_one_zero_point(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (float[n] x) => (float[n] y) <float s = {1.0}, float t = {0.5}, int8 z = {0}> {
            q = QuantizeLinear(x, s, z)
            d = DequantizeLinear(q, s, z)
            p = QuantizeLinear(d, t, z)
            y = DequantizeLinear(p, t, z)
        }""")
    assert graphs.apply(UnsignedActivationsPass(), model, x=X)


@pytest.mark.parametrize(("low", "high"), [(-127, 127), (-8, 7)], ids=["narrow range", "4 bits"])
def test_case_2_the_bounds_are_shifted_too(graphs: Graphs, low: int, high: int) -> None:
    model = graphs.parse(f"""
        g (float[n] x) => (float[n] y)
        <float s = {{1.0}}, int8 z = {{0}}, int8 low = {{{low}}}, int8 high = {{{high}}}> {{
            q = QuantizeLinear(x, s, z)
            c = Clip(q, low, high)
            y = DequantizeLinear(c, s, z)
        }}""")
    assert graphs.run(model, x=X)["y"].min() == low
    assert graphs.apply(UnsignedActivationsPass(), model, x=X)
    assert [int(value.const_value.numpy()) for value in model.graph[1].inputs[1:]] == [low + 128, high + 128]


def test_case_3_integers_that_something_else_reads_are_left_alone(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (float[n] x) => (float[n] y, int32[n] i) <float s = {1.0}, int8 z = {0}> {
            q = QuantizeLinear(x, s, z)
            y = DequantizeLinear(q, s, z)
            i = Cast<to=6>(q)
        }""")
    assert not graphs.apply(UnsignedActivationsPass(), model, x=X)


def test_case_3_integers_that_are_an_output_are_left_alone(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (float[n] x) => (float[n] y, int8[n] q) <float s = {1.0}, int8 z = {0}> {
            q = QuantizeLinear(x, s, z)
            y = DequantizeLinear(q, s, z)
        }""")
    assert not graphs.apply(UnsignedActivationsPass(), model, x=X)


def test_case_3_bounds_that_are_computed_are_left_alone(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (float[n] x, int8 low) => (float[n] y) <float s = {1.0}, int8 z = {0}, int8 high = {7}> {
            q = QuantizeLinear(x, s, z)
            c = Clip(q, low, high)
            y = DequantizeLinear(c, s, z)
        }""")
    assert not graphs.apply(UnsignedActivationsPass(), model, x=X, low=np.array(-2, np.int8))


def test_case_3_a_stored_tensor_is_left_alone(graphs: Graphs) -> None:
    model = graphs.parse("""
        g () => (float[2] y) <float[2] w = {1.0, 2.0}, float s = {1.0}, int8 z = {0}> {
            q = QuantizeLinear(w, s, z)
            y = DequantizeLinear(q, s, z)
        }""")
    assert not graphs.apply(UnsignedActivationsPass(), model)


def test_unsigned_ones_are_what_they_should_be(graphs: Graphs) -> None:
    assert not graphs.apply(UnsignedActivationsPass(), graphs.parse(PAIR.format(dtype="uint8", zero=7)), x=X)


def test_without_a_zero_point_it_is_not_ours(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (float[n] x) => (float[n] y) <float s = {1.0}> {
            q = QuantizeLinear(x, s)
            y = DequantizeLinear(q, s)
        }""")
    assert not graphs.apply(UnsignedActivationsPass(), model, x=X)
