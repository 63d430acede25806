from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from exporters.onnx.passes.weight_only_gemm import WeightOnlyGemmPass

if TYPE_CHECKING:
    import onnx_ir as ir

    from tests.exporters.onnx.conftest import Graphs

ROWS, COLUMNS = 40, 3
GENERATOR = np.random.default_rng(0)
X = GENERATOR.standard_normal((1, 2, ROWS), dtype=np.float32)


def linear(
    *,
    kind: str = "int8",
    low: int = -128,
    high: int = 127,
    block: int = 0,
    scales: tuple[int, ...] = (COLUMNS,),
    axis: int | None = 1,
    zeros: bool = False,
    source: str = "x",
    tail: str = "y = Identity(m)",
    outputs: str = "float[1,2,3] y",
) -> str:
    """A product with a stored weight; ``low`` and ``high`` bound its integers."""
    generator = np.random.default_rng(1)

    def numbers(shape: tuple[int, ...], lowest: int, highest: int) -> str:
        return ", ".join(map(str, generator.integers(lowest, highest + 1, shape).ravel()))

    dims = "" if not scales else f"[{','.join(map(str, scales))}]"
    scale = ", ".join(f"{value:.4f}" for value in generator.random(scales or (1,)).ravel() * 0.1 + 0.01)
    zero = numbers(scales or (1,), low, high) if zeros else ", ".join(["0"] * int(np.prod(scales)))
    along = ", ".join(
        [f"axis={axis}"] * (axis is not None) + [f"block_size={block}"] * bool(block)
    )  # nothing at all for one scale
    return f"""
        g (float[1,2,{ROWS}] x) => ({outputs})
        <{kind}[{ROWS},{COLUMNS}] w = {{{numbers((ROWS, COLUMNS), low, high)}}}, float{dims} s = {{{scale}}},
         {kind}{dims} z = {{{zero}}}, float[{COLUMNS}] c = {{0.5, -1.0, 100.0}},
         float a = {{0.1}}, uint8 b = {{128}}> {{
            q = QuantizeLinear(x, a, b)
            p = DequantizeLinear(q, a, b)
            d = DequantizeLinear{f"<{along}>" if along else ""}(w, s, z)
            [product] m = MatMul({source}, d)
            {tail}
        }}"""


def fused(model: ir.Model) -> ir.Node:
    (node,) = [node for node in model.graph if node.op_type == "MatMulNBits"]
    assert node.domain == "com.microsoft"
    return node


def size(model: ir.Model) -> int:
    value = fused(model).inputs[1]
    assert value is not None
    assert value.const_value is not None
    return value.const_value.nbytes


BLOCKS = {"block": 16, "scales": (3, COLUMNS), "axis": 0}  # of 40 rows: the last block is shorter


@pytest.mark.parametrize(
    ("settings", "bits"),
    [
        pytest.param({**BLOCKS}, 8, id="case 1"),
        pytest.param({**BLOCKS, "kind": "uint8", "low": 0, "high": 255, "zeros": True}, 8, id="case 1, affine"),
        pytest.param({}, 8, id="case 2, per column"),
        pytest.param({"axis": -1}, 8, id="case 2, counted back"),
        pytest.param({"scales": (), "axis": None}, 8, id="case 2, per tensor"),
        pytest.param({**BLOCKS, "low": -8, "high": 7}, 4, id="case 3"),
        pytest.param({**BLOCKS, "kind": "uint8", "low": 0, "high": 15, "zeros": True}, 4, id="case 3, affine"),
        pytest.param({"low": -8, "high": 7}, 4, id="case 3, per column"),
    ],
)
def test_the_product_stays_and_bytes_go(graphs: Graphs, settings: dict[str, Any], bits: int) -> None:
    model = graphs.parse(linear(**settings))
    assert graphs.apply(WeightOnlyGemmPass(), model, x=X)
    node = fused(model)
    assert node.name == "product"
    assert node.attributes.get_int("bits") == bits
    assert node.attributes.get_int("accuracy_level") == 1, "products in float32"
    block = node.attributes.get_int("block_size")
    assert size(model) == COLUMNS * -(-ROWS // block) * block * bits // 8
    assert model.graph.opset_imports["com.microsoft"] == 1
    assert "DequantizeLinear" not in graphs.operators(model)[2:]


@pytest.mark.parametrize("order", ["m, c", "c, m"])
def test_case_4_the_bias_becomes_an_input(graphs: Graphs, order: str) -> None:
    model = graphs.parse(linear(**BLOCKS, tail=f"y = Add({order})"))
    assert graphs.apply(WeightOnlyGemmPass(), model, x=X)
    assert graphs.operators(model)[-1] == "MatMulNBits"
    assert fused(model).inputs[5].name == "c"


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"source": "p"}, id="the activation is quantized"),
        pytest.param({"block": 20, "scales": (2, COLUMNS), "axis": 0}, id="a block that is no power of two"),
        pytest.param({"block": 8, "scales": (5, COLUMNS), "axis": 0}, id="a block that is too small"),
        pytest.param({"block": 2, "scales": (ROWS, 2), "axis": 1}, id="blocks along the columns"),
        pytest.param({"scales": (ROWS,), "axis": 0}, id="a scale for each row"),
    ],
)
def test_case_5_left_alone(graphs: Graphs, settings: dict[str, Any]) -> None:
    assert not graphs.apply(WeightOnlyGemmPass(), graphs.parse(linear(**settings)), x=X)


def test_case_5_what_others_read_stays(graphs: Graphs) -> None:
    model = graphs.parse(linear(tail="y = Identity(m)\n u = Neg(d)", outputs="float[1,2,3] y, float[40,3] u"))
    assert graphs.apply(WeightOnlyGemmPass(), model, x=X)
    assert graphs.operators(model).count("DequantizeLinear") == 2
