from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from exporters.onnx.isa import ANY, isa_named
from exporters.onnx.passes.gather_before_dequantize import GatherBeforeDequantizePass
from exporters.onnx.passes.integer_gemm import IntegerGemmPass
from exporters.onnx.passes.transpose_before_dequantize import TransposeBeforeDequantizePass
from exporters.onnx.passes.unsigned_tables import UnsignedTablesPass
from exporters.onnx.passes.weight_only_gemm import WeightOnlyGemmPass

if TYPE_CHECKING:
    import onnx_ir as ir

    from tests.exporters.onnx.conftest import Graphs

GENERATOR = np.random.default_rng(0)
WIDTH, ROWS = 32, 5
INPUTS = {"i": np.int64([4, 0, 2]), "x": GENERATOR.standard_normal((2, WIDTH), dtype=np.float32)}


def table(low: int = -127, high: int = 127) -> str:
    numbers = np.random.default_rng(1).integers(low, high + 1, ROWS * WIDTH)
    return ", ".join(map(str, numbers))


def tied(*, source: str = "p", integers: str | None = None, zero: int = 0, nodes: str = "") -> str:
    return f"""
        g (int64[n] i, float[2,{WIDTH}] x) => (float[n,{WIDTH}] y, float[2,{ROWS}] u)
        <int8[{ROWS},{WIDTH}] w = {{{integers or table()}}}, float[{ROWS}] s = {{0.5, 0.25, 1.0, 2.0, 0.75}},
         int8[{ROWS}] z = {{{", ".join([str(zero)] * ROWS)}}}, float[{ROWS}] c = {{1.0, 2.0, 3.0, 4.0, 5.0}},
         float a = {{0.02}}, uint8 b = {{128}}> {{
            d = DequantizeLinear<axis=0>(w, s, z)
            [word] y = Gather(d, i)
            q = QuantizeLinear(x, a, b)
            p = DequantizeLinear(q, a, b)
            t = Transpose<perm=[1,0]>(d)
            [decoder] m = MatMul({source}, t)
            u = Add(m, c)
            {nodes}
        }}"""


def large(model: ir.Model) -> list[str]:
    return [
        value.const_value.dtype.name
        for value in model.graph.initializers.values()
        if value.const_value.size == ROWS * WIDTH
    ]


def test_case_1_a_cpu_without_vnni_could_saturate(graphs: Graphs) -> None:
    model = graphs.parse(tied())
    assert graphs.apply(UnsignedTablesPass(ANY), model, **INPUTS)
    table, zeros = (graphs.array(model, model.graph[0].inputs[index].name) for index in (0, 2))
    assert table.dtype == zeros.dtype == np.uint8
    assert (zeros == 128).all()


@pytest.mark.parametrize(
    ("text", "isa"),
    [
        pytest.param(tied(), "vnni", id="this CPU never saturates"),
        pytest.param(tied(integers=table(-60, 60)), "any", id="no pair can"),
        pytest.param(tied(zero=1), "any", id="zero points that are not 0"),
        pytest.param(tied().replace("(d)", "(d)\n n = Neg(t)").replace("(p, t)", "(p, n)"), "any", id="no product"),
    ],
)
def test_case_3_left_alone(graphs: Graphs, text: str, isa: str) -> None:
    assert not graphs.apply(UnsignedTablesPass(isa_named(isa)), graphs.parse(text), **INPUTS)


@pytest.mark.parametrize(
    ("source", "operator"), [("p", "MatMulIntegerToFloat"), ("x", "MatMulNBits")], ids=["integers", "weight only"]
)
def test_look_up_and_product_share_one_table(graphs: Graphs, source: str, operator: str) -> None:
    """All passes that such a table meets, together: what is stored, and what is computed."""
    model = graphs.parse(tied(source=source))
    expected = graphs.run(model, **INPUTS)
    passes = [
        UnsignedTablesPass(ANY),
        GatherBeforeDequantizePass(),
        TransposeBeforeDequantizePass(),
        IntegerGemmPass(ANY),
        WeightOnlyGemmPass(),
    ]
    for graph_pass in passes:
        graph_pass(model)
    model.graph.sort()
    names = {value.name for node in model.graph for value in node.inputs if value is not None}
    for name in [name for name in model.graph.initializers if name not in names]:
        del model.graph.initializers[name]
    assert operator in graphs.operators(model)
    assert large(model) == ["UINT8"]
    for optimize in (False, True):
        found = graphs.run(model, optimize=optimize, **INPUTS)
        np.testing.assert_array_equal(found["y"], expected["y"])
        np.testing.assert_allclose(found["u"], expected["u"], rtol=1e-5, atol=1e-4)


def test_case_2_rows_that_blocks_do_not_divide_stay(graphs: Graphs) -> None:
    text = tied(source="x", integers=", ".join(["3"] * (ROWS * 24))).replace(f"{WIDTH}]", "24]")
    x = np.ones((2, 24), np.float32)
    assert not graphs.apply(UnsignedTablesPass(ANY), graphs.parse(text), i=INPUTS["i"], x=x)
