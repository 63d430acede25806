from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from exporters.onnx.passes.tie_tables import TieTablesPass

if TYPE_CHECKING:
    from tests.exporters.onnx.conftest import Graphs

INPUTS = {"i": np.int64([2, 0]), "x": np.float32([[1, -2]])}


LARGE = np.arange(60, dtype=np.float32).reshape(20, 3)


def graph(copy: str, *, dims: str = "2,3", product: str = "MatMul(x, a)") -> str:
    return f"""
        g (int64[n] i, float[1,2] x) => (float[n,2] y, float[1,3] u)
        <float[3,2] b = {{1.0, 2.0, 3.0, 4.0, 5.0, 6.0}}, float[{dims}] a = {{{copy}}}> {{
            y = Gather(b, i)
            [decoder] u = {product}
        }}"""


def test_case_1_the_product_reads_the_table(graphs: Graphs) -> None:
    model = graphs.parse(graph("1.0, 3.0, 5.0, 2.0, 4.0, 6.0"))
    assert graphs.apply(TieTablesPass(), model, **INPUTS)
    assert graphs.operators(model) == ["Gather", "Transpose", "MatMul"]
    assert list(model.graph.initializers) == ["b"]
    assert model.graph[1].name == "decoder/Transpose"


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(graph("1.0, 3.0, 5.0, 2.0, 4.0, 7.0"), id="another value"),
        pytest.param(graph("1.0, 2.0, 3.0, 4.0, 5.0, 6.0"), id="the same order in storage"),
        pytest.param(
            graph("1.0, 2.0, 3.0, 4.0, 5.0, 6.0", dims="3,2", product="Gemm<transB=1>(x, a)"), id="another operator"
        ),
    ],
)
def test_case_2_left_alone(graphs: Graphs, text: str) -> None:
    assert not graphs.apply(TieTablesPass(), graphs.parse(text), **INPUTS)


@pytest.mark.parametrize("row", [0, 7, 8, 19])
def test_a_table_that_differs_in_one_row_is_another(graphs: Graphs, row: int) -> None:
    """Wherever that row is."""
    other = LARGE.copy()
    other[row, 1] += 1
    for copy, is_tied in ((LARGE, True), (other, False)):
        b, a = (", ".join(map(str, array.ravel())) for array in (LARGE, copy.T))
        model = graphs.parse(f"""
            g (int64[n] i, float[1,3] x) => (float[n,3] y, float[1,20] u)
            <float[20,3] b = {{{b}}}, float[3,20] a = {{{a}}}> {{
                y = Gather(b, i)
                u = MatMul(x, a)
            }}""")
        assert TieTablesPass()(model).modified == is_tied


def test_two_products_read_one_table(graphs: Graphs) -> None:
    model = graphs.parse("""
        g (int64[n] i, float[1,2] x) => (float[n,2] y, float[1,3] u, float[1,3] v)
        <float[3,2] b = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}, float[2,3] a = {1.0, 3.0, 5.0, 2.0, 4.0, 6.0}> {
            y = Gather(b, i)
            [first] u = MatMul(x, a)
            h = Neg(x)
            [second] v = MatMul(h, a)
        }""")
    assert graphs.apply(TieTablesPass(), model, **INPUTS)
    assert graphs.operators(model).count("Transpose") == 1
    assert list(model.graph.initializers) == ["b"]
