from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from exporters.onnx.passes.signed_activations import SignedActivationsPass
from exporters.onnx.passes.unsigned_activations import UnsignedActivationsPass

if TYPE_CHECKING:
    from tests.exporters.onnx.conftest import Graphs

X = np.float32([-1000, -127, -3.5, -0.5, 0, 0.5, 126, 1000])
PAIR = """
    g (float[n] x) => (float[n] y) <float s = {{1.0}}, {dtype} z = {{{zero}}}> {{
        q = QuantizeLinear(x, s, z)
        y = DequantizeLinear(q, s, z)
    }}"""


@pytest.mark.parametrize("zero", [0, 128, 123, 255])
def test_case_1_the_same_grid_in_int8_and_back(graphs: Graphs, zero: int) -> None:
    model = graphs.parse(PAIR.format(dtype="uint8", zero=zero))
    expected = graphs.run(model, x=X)["y"]
    assert graphs.apply(SignedActivationsPass(), model, x=X)
    held = model.graph[0].inputs[2].const_value.numpy()
    assert (held.dtype, int(held)) == (np.int8, zero - 128)
    np.testing.assert_array_equal(graphs.run(model, x=X)["y"], expected)
    assert UnsignedActivationsPass()(model).modified
    assert int(model.graph[0].inputs[2].const_value.numpy()) == zero


def test_case_2_the_bounds_are_shifted_too(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (float[n] x) => (float[n] y) <float s = {1.0}, uint8 z = {8}, uint8 low = {0}, uint8 high = {15}> {
            q = QuantizeLinear(x, s, z)
            c = Clip(q, low, high)
            y = DequantizeLinear(c, s, z)
        }""")
    assert graphs.apply(SignedActivationsPass(), model, x=X)
    assert graphs.run(model, x=X)["y"].tolist() == [-8, -8, -4, 0, 0, 0, 7, 7]


@pytest.mark.parametrize(
    "text",
    [
        PAIR.format(dtype="int8", zero=3),
        "g (float[n] x) => (uint8[n] q) <float s = {1.0}, uint8 z = {9}> { q = QuantizeLinear(x, s, z) }",
        """g (float[n] x) => (float[n] y) {
            q, s, z = DynamicQuantizeLinear(x)
            y = DequantizeLinear(q, s, z)
        }""",
    ],
    ids=["int8 already", "a graph output", "DynamicQuantizeLinear"],
)
def test_case_3_left_alone(graphs: Graphs, text: str) -> None:
    assert not graphs.apply(SignedActivationsPass(), graphs.parse(text), x=X)
