from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import pytest

from exporters.onnx.passes.four_bits import FourBitsPass

if TYPE_CHECKING:
    from tests.exporters.onnx.conftest import Graphs

X = np.random.default_rng(0).normal(size=(2, 4)).astype(np.float32)


def product(values: str, *, kind: str = "int8", zero: str = "0, 0, 0, 0", blocks: str = ", block_size = 2") -> str:
    scales = "float[2,2] s = {0.5, 1, 2, 4}" if blocks else "float[2] s = {0.5, 1}"
    zeros = f"{kind}[2,2] z = {{{zero}}}" if blocks else f"{kind}[2] z = {{0, 0}}"
    return f"""agraph (float[2,4] x) => (float[2,2] y)
        <{kind}[4,2] W = {{{values}}}, {scales}, {zeros}>
        {{
            w = DequantizeLinear <axis = {0 if blocks else 1}{blocks}> (W, s, z)
            y = MatMul (x, w)
        }}"""


@pytest.mark.parametrize(
    ("kind", "values", "zero", "stored"),
    [
        ("int8", "-8, 7, 0, 1, 2, -3, 4, 5", "0, -8, 7, 1", ir.DataType.INT4),
        ("uint8", "0, 15, 8, 1, 2, 3, 4, 5", "8, 0, 15, 8", ir.DataType.UINT4),
    ],
)
def test_case_1_two_values_in_a_byte(graphs: Graphs, kind: str, values: str, zero: str, stored: ir.DataType) -> None:
    model = graphs.parse(product(values, kind=kind, zero=zero))
    assert graphs.apply(FourBitsPass(), model, x=X)
    (node,) = (node for node in model.graph if node.op_type == "DequantizeLinear")
    for index, size in ((0, 4), (2, 2)):
        tensor = node.inputs[index].const_value
        assert tensor.dtype == stored
        assert len(tensor.tobytes()) == size


@pytest.mark.parametrize(
    "text",
    [
        product("-9, 7, 0, 1, 2, -3, 4, 5"),
        product("-8, 7, 0, 1, 2, -3, 4, 5", zero="0, 0, 0, 9"),
        product("-8, 7, 0, 1, 2, -3, 4, 5", blocks=""),
    ],
    ids=["a value", "a zero point", "no blocks"],
)
def test_case_2_what_does_not_fit_is_left_alone(graphs: Graphs, text: str) -> None:
    assert not graphs.apply(FourBitsPass(), graphs.parse(text), x=X)
