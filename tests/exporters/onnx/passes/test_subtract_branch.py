"""Residual additions as subtractions of a negated branch: the same bits, and what is left alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from exporters.onnx.passes.subtract_branch import SubtractBranchPass

if TYPE_CHECKING:
    from tests.exporters.onnx.conftest import Graphs

RNG = np.random.default_rng(0)
INPUTS = {
    "x": RNG.integers(0, 256, size=(2, 3, 4)).astype(np.uint8),
    "residual": RNG.normal(size=(2, 3, 4)).astype(np.float32),
}


def residual(total: str = "t = Sum(branch, residual)", *, bias: str = "bias", outputs: str = "float[2,3,4] y") -> str:
    return f"""
        g (uint8[2,3,4] x, float[2,3,4] residual) => ({outputs})
        <int8[4,4] w = {{-128, 3, 5, 7, 1, 127, 9, 2, 4, 8, -6, 1, 3, 5, 7, 90}}, uint8 zero = {{120}},
         float xs = {{0.03}}, float[4] ws = {{0.01, 0.02, 0.03, 0.04}}, float[4] bias = {{0.5, -1.0, 0.0, 2.0}},
         float[4] scale = {{1.0, 2.0, 3.0, 4.0}}, float[4] shift = {{0.0, 1.0, 2.0, 3.0}}> {{
            branch = com.microsoft.MatMulIntegerToFloat(x, w, xs, ws, zero, , {bias})
            {total}
            y = LayerNormalization<axis=-1>(t, scale, shift)
        }}"""


@pytest.mark.parametrize("bias", ["bias", ""], ids=["bias", "no bias"])
@pytest.mark.parametrize("total", ["t = Sum(branch, residual)", "t = Sum(residual, branch)"])
def test_case_1_the_sum_is_the_same_to_the_bit(graphs: Graphs, total: str, bias: str) -> None:
    before, after = graphs.parse(residual(total, bias=bias)), graphs.parse(residual(total, bias=bias))
    assert SubtractBranchPass()(after).modified
    assert not SubtractBranchPass()(after).modified
    assert graphs.operators(after) == ["MatMulIntegerToFloat", "Sub", "LayerNormalization"]
    (wanted,), (found,) = (graphs.run(model, optimize=True, **INPUTS).values() for model in (before, after))
    np.testing.assert_array_equal(found, wanted)


def test_case_2_others_keep_their_scales(graphs: Graphs) -> None:
    model = graphs.parse(
        residual("t = Sum(branch, residual)\n u = Mul(ws, bias)", outputs="float[2,3,4] y, float[4] u")
    )
    assert SubtractBranchPass()(model).modified
    np.testing.assert_array_equal(graphs.array(model, "ws"), np.array([0.01, 0.02, 0.03, 0.04], np.float32))
    np.testing.assert_array_equal(graphs.array(model, "ws_negated"), -graphs.array(model, "ws"))


@pytest.mark.parametrize(
    ("total", "outputs"),
    [
        ("t = Sum(residual, residual)", "float[2,3,4] y"),
        ("t = Sum(branch, residual)", "float[2,3,4] y, float[2,3,4] branch"),
        ("t = Add(branch, residual)", "float[2,3,4] y"),
    ],
    ids=["no product", "the branch is an output", "no sum"],
)
def test_case_3_is_left_alone(graphs: Graphs, total: str, outputs: str) -> None:
    assert not SubtractBranchPass()(graphs.parse(residual(total, outputs=outputs))).modified
