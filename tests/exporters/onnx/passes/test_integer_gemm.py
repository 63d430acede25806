from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import pytest

from exporters.onnx.passes import integer_gemm
from exporters.onnx.passes.integer_gemm import IntegerGemmPass, may_saturate

if TYPE_CHECKING:
    from tests.exporters.onnx.conftest import Graphs

X = np.float32([[[1, -2, 3, 0.4], [9, -9, 0, 5]]])
WEIGHT = "int8[4,3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, -12}"
BIAS = "float[3] c = {0.5, -1.0, 100.0}"
COLUMNS = "float[3] s = {0.5, 1.0, 2.0}, int8[3] z = {0, 0, 0}"
ONE = "float s = {0.5}, int8 z = {0}"


def linear(
    *,
    weight: str = WEIGHT,
    scales: str = COLUMNS,
    axis: int | None = 1,
    activation: str = "uint8 b = {128}",
    tail: str = "y = Identity(m)",
    outputs: str = "float[1,2,3] y",
) -> str:
    along = "" if axis is None else f"<axis={axis}>"
    return f"""
        g (float[1,2,4] x) => ({outputs}) <{weight}, {scales}, {BIAS}, float a = {{0.1}}, {activation}> {{
            q = QuantizeLinear(x, a, b)
            p = DequantizeLinear(q, a, b)
            d = DequantizeLinear{along}(w, s, z)
            [product] m = MatMul(p, d)
            {tail}
        }}"""


def fused(model: ir.Model) -> ir.Node:
    (node,) = [node for node in model.graph if node.op_type == "MatMulIntegerToFloat"]
    assert node.domain == "com.microsoft"
    return node


@pytest.mark.parametrize(
    ("scales", "axis"), [(COLUMNS, 1), (COLUMNS, -1), (ONE, None)], ids=["per column", "counted back", "per tensor"]
)
def test_case_1_one_node_for_the_product(graphs: Graphs, scales: str, axis: int | None) -> None:
    model = graphs.parse(linear(scales=scales, axis=axis))
    assert graphs.apply(IntegerGemmPass(), model, x=X)
    assert graphs.operators(model) == ["QuantizeLinear", "MatMulIntegerToFloat", "Identity"]
    assert fused(model).name == "product"
    assert fused(model).inputs[1].name == "w"  # as it was stored
    assert model.graph.opset_imports == {"": 21, "com.microsoft": 1}


def test_case_1_a_product_that_is_an_output_keeps_its_name(graphs: Graphs) -> None:
    model = graphs.parse(linear(tail="", outputs="float[1,2,3] m"))
    assert graphs.apply(IntegerGemmPass(), model, x=X)


def test_case_1_three_products_read_one_quantizer(graphs: Graphs) -> None:
    more = "k = MatMul(p, d)\n v = MatMul(p, d)\n y = Sum(m, k, v)"
    model = graphs.parse(linear(tail=more))
    assert graphs.apply(IntegerGemmPass(), model, x=X)
    assert graphs.operators(model) == ["QuantizeLinear", *["MatMulIntegerToFloat"] * 3, "Sum"]


def test_case_1_what_others_read_stays(graphs: Graphs) -> None:
    model = graphs.parse(linear(tail="y = Identity(m)\n u = Neg(p)", outputs="float[1,2,3] y, float[1,2,4] u"))
    assert graphs.apply(IntegerGemmPass(), model, x=X)
    assert graphs.operators(model).count("DequantizeLinear") == 1


@pytest.mark.parametrize("order", ["m, c", "c, m"])
def test_case_3_the_bias_becomes_an_input(graphs: Graphs, order: str) -> None:
    model = graphs.parse(linear(tail=f"y = Add({order})"))
    assert graphs.apply(IntegerGemmPass(), model, x=X)
    assert graphs.operators(model) == ["QuantizeLinear", "MatMulIntegerToFloat"]
    assert fused(model).inputs[6].name == "c"


@pytest.mark.parametrize(
    "tail",
    [
        "y = Add(m, m)",
        "one = Constant<value_float=1.0>()\n y = Add(m, one)",
        "n = Neg(m)\n y = Add(m, n)",
        "k = Add(m, c)\n y = Add(k, m)",
        "y = Sub(m, c)",
    ],
    ids=["itself", "a scalar", "a computed tensor", "read twice", "a subtraction"],
)
def test_case_3_anything_else_that_is_added_stays(graphs: Graphs, tail: str) -> None:
    model = graphs.parse(linear(tail=tail))
    assert graphs.apply(IntegerGemmPass(), model, x=X)
    assert len(fused(model).inputs) == 6


def test_case_3_a_product_that_is_an_output_keeps_its_bias_apart(graphs: Graphs) -> None:
    model = graphs.parse(linear(tail="y = Add(m, c)", outputs="float[1,2,3] y, float[1,2,3] m"))
    assert graphs.apply(IntegerGemmPass(), model, x=X)
    assert graphs.operators(model)[-1] == "Add"


@pytest.mark.parametrize(
    "changes",
    [
        {"activation": "int8 b = {0}"},
        {"scales": "float[3] s = {0.5, 1.0, 2.0}, int8[3] z = {0, 1, 0}"},
        {"scales": "float[4] s = {0.5, 1.0, 2.0, 4.0}, int8[4] z = {0, 0, 0, 0}", "axis": 0},
        {
            "weight": "uint8[4,3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}",
            "scales": "float s = {1.0}, uint8 z = {0}",
            "axis": None,
        },
        {"weight": "int8[1,4,3] w = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, -12}", "scales": ONE, "axis": None},
    ],
    ids=["int8 activations", "zero points", "a scale for each row", "uint8 weights", "three axes"],
)
def test_case_4_anything_else_is_left_alone(graphs: Graphs, changes: dict[str, Any]) -> None:
    assert not graphs.apply(IntegerGemmPass(), graphs.parse(linear(**changes)), x=X)


@pytest.mark.parametrize(
    "nodes",
    [
        "p = DequantizeLinear(q, a, b)\n y = MatMul(p, f)",
        "d = DequantizeLinear(w, s, z)\n y = MatMul(x, d)",
        "y = MatMul(x, f)",
        "p = DequantizeLinear(q, a, b)\n d = DequantizeLinear(w, s)\n y = MatMul(p, d)",
    ],
    ids=["float weight", "float activation", "float", "no zero point"],
)
def test_case_4_half_of_a_quantized_product_is_left_alone(graphs: Graphs, nodes: str) -> None:
    model = graphs.parse(f"""
        g (float[1,2,4] x) => (float[1,2,3] y, uint8[1,2,4] q)
        <{WEIGHT}, {ONE}, float a = {{0.1}}, uint8 b = {{128}},
         float[4,3] f = {{1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0}}> {{
            q = QuantizeLinear(x, a, b)
            {nodes}
        }}""")
    assert not graphs.apply(IntegerGemmPass(), model, x=X)
    assert "com.microsoft" not in model.graph.opset_imports


@pytest.mark.parametrize(
    ("weight", "may"),
    [
        ([[64], [64]], False),
        ([[64], [65]], True),
        ([[-64], [-64]], False),
        ([[-64], [-65]], True),
        ([[127], [-128]], False),
        ([[1], [64], [65]], True),  # the pair starts at an odd row
        ([[64, 65]], False),  # neighbours in one row are of different sums
        ([[127]], False),
    ],
    ids=str,
)
def test_case_2_weights_that_may_saturate(weight: list[list[int]], may: bool) -> None:
    assert may_saturate(np.int8(weight)) is may


def worst(graphs: Graphs, columns: int = 16, depth: int = 64) -> tuple[ir.Model, np.ndarray, np.ndarray]:
    """Activations of 255 and weights of 127 and -128: every pair of products leaves int16."""
    weight = np.where(np.arange(columns) % 2, -128, 127) * np.ones((depth, 1), int)
    model = graphs.parse(f"""
        g (float[n,{depth}] x) => (float[n,{columns}] y)
        <int8[{depth},{columns}] w = {{{", ".join(map(str, weight.ravel()))}}}, float s = {{1.0}}, int8 z = {{0}},
         float a = {{1.0}}, uint8 b = {{0}}> {{
            q = QuantizeLinear(x, a, b)
            p = DequantizeLinear(q, a, b)
            d = DequantizeLinear(w, s, z)
            y = MatMul(p, d)
        }}""")
    x = np.full((8, depth), 255, np.float32)
    return model, x, (x.astype(np.int64) @ weight).astype(np.float32)


def test_case_2_is_exact_where_the_other_form_would_saturate(graphs: Graphs) -> None:
    model, x, exact = worst(graphs)
    assert graphs.apply(IntegerGemmPass(), model, x=x)
    stored, zero = (fused(model).inputs[index].const_value.numpy() for index in (1, 5))
    assert stored.dtype == zero.dtype == np.uint8
    assert (zero == 128).all()
    for optimize in (False, True):
        np.testing.assert_array_equal(graphs.run(model, optimize=optimize, x=x)["y"], exact)


def test_case_2_a_zero_point_for_each_column(graphs: Graphs) -> None:
    large = "int8[4,3] w = {100, 2, 3, 100, 5, 6, 7, 8, 9, 10, 11, -12}"
    model = graphs.parse(linear(weight=large, tail="y = Add(m, c)"))
    assert graphs.apply(IntegerGemmPass(), model, x=X)
    assert fused(model).inputs[5].const_value.numpy().tolist() == [128, 128, 128]
    assert "w" not in {value.name for node in model.graph for value in node.inputs}


def test_without_case_2_this_cpu_is_wrong(graphs: Graphs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(integer_gemm, "may_saturate", lambda weight: False)
    model, x, exact = worst(graphs)
    assert IntegerGemmPass()(model).modified
    assert fused(model).inputs[1].const_value.dtype == ir.DataType.INT8
    found = graphs.run(model, x=x)["y"]
    if (found == exact).all():
        pytest.skip("this CPU adds products of uint8 and int8 in 32 bits (VNNI)")
    assert np.abs(found - exact).max() > 0.4 * np.abs(exact).max()
