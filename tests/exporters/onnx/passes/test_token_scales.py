from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from onnx_ir.passes import common

from exporters.onnx.passes.integer_gemm import IntegerGemmPass
from exporters.onnx.passes.token_scales import TokenScalesPass
from exporters.onnx.passes.unsigned_activations import UnsignedActivationsPass

if TYPE_CHECKING:
    import onnx_ir as ir

    from tests.exporters.onnx.conftest import Graphs

X = np.random.default_rng(0).normal(size=(2, 3, 4)).astype(np.float32) * np.float32([[[1e-3], [1.0], [1e3]]])
CONSTANTS = (
    "int8[4,2] w = {1, 2, 3, 4, 5, 6, 7, -8}, float[2] ws = {0.5, 2.0}, int8[2] wz = {0, 0}, float[2] c = {1.0, 9.0}, "
    "int64[1] last = {-1}, float most = {127.0}, float low = {-128.0}, float high = {127.0}"
)
PRODUCT = "y = MatMul(p, d)"


def linear(tail: str = PRODUCT, *, scales: str = "s = Div(peak, most)", outputs: str = "float[2,3,2] y") -> str:
    return f"""
        g (float[2,3,4] x) => ({outputs}) <{CONSTANTS}> {{
            a = Abs(x)
            peak = ReduceMax(a, last)
            {scales}
            [division] v = Div(x, s)
            r = Round(v)
            k = Clip(r, low, high)
            p = Mul(k, s)
            d = DequantizeLinear<axis=1>(w, ws, wz)
            {tail}
        }}"""


def parsed(graphs: Graphs, text: str) -> ir.Model:
    """With shapes, as exported graphs have them."""
    model: ir.Model = graphs.parse(text)
    common.ShapeInferencePass()(model)
    return model


def quantizers(model: ir.Model) -> list[str | None]:
    return [node.name for node in model.graph if node.op_type == "QuantizeLinear"]


def test_case_1_the_scales_stand_behind_the_product(graphs: Graphs) -> None:
    model = parsed(graphs, linear())
    next(node for node in model.graph if node.name == "division").name = "slot/Div"
    assert graphs.apply(TokenScalesPass(), model, x=X)
    assert graphs.operators(model)[-2:] == ["MatMul", "Mul"]
    assert quantizers(model) == ["slot/QuantizeLinear"]


def test_case_1_the_product_can_be_one_of_integers(graphs: Graphs) -> None:
    model = parsed(graphs, linear("m = MatMul(p, d)\n y = Add(m, c)"))
    assert graphs.apply(TokenScalesPass(), model, x=X)
    assert graphs.apply(UnsignedActivationsPass(), model, x=X)
    assert graphs.apply(IntegerGemmPass(), model, x=X)
    assert graphs.operators(model)[-3:] == ["MatMulIntegerToFloat", "Mul", "Add"]


def test_case_2_products_of_one_tensor_share_its_integers(graphs: Graphs) -> None:
    model = parsed(graphs, linear("[one] m = MatMul(p, d)\n [two] n = MatMul(p, d)\n y = Add(m, n)"))
    assert graphs.apply(TokenScalesPass(), model, x=X)
    assert len(quantizers(model)) == 1
    assert graphs.operators(model)[-5:] == ["MatMul", "Mul", "MatMul", "Mul", "Add"]


def test_case_3_other_readers_keep_the_tensor(graphs: Graphs) -> None:
    model = parsed(graphs, linear(PRODUCT + "\n u = Neg(p)", outputs="float[2,3,2] y, float[2,3,4] u"))
    assert graphs.apply(TokenScalesPass(), model, x=X)
    assert len(quantizers(model)) == 1


@pytest.mark.parametrize(
    "graph",
    [
        linear(scales="whole = ReduceMax<keepdims=0>(a)\n s = Div(whole, most)"),
        linear("n = Neg(p)\n y = MatMul(n, d)"),
        linear("e = Neg(d)\n y = MatMul(p, e)"),
        linear().replace("p = Mul(k, s)", "p = Mul(k, peak)"),
        linear().replace("high = {127.0}", "high = {1000.0}"),
    ],
    ids=["one scale", "not the tensor", "not a stored weight", "another scale", "more than 8 bits"],
)
def test_case_4_anything_else_is_left_alone(graphs: Graphs, graph: str) -> None:
    model = parsed(graphs, graph)
    assert not graphs.apply(TokenScalesPass(), model, x=X)
