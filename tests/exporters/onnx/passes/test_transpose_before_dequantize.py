from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from exporters.onnx.passes.transpose_before_dequantize import TransposeBeforeDequantizePass

if TYPE_CHECKING:
    from tests.exporters.onnx.conftest import Graphs

X = np.random.default_rng(0).normal(size=(2, 3)).astype(np.float32)
IDS = np.array([[1, 0]], dtype=np.int64)


def tied(scale: str, axis: str) -> str:
    return f"""agraph (float[2,3] x, int64[1,2] ids) => (float[2,2] y, float[1,2,3] rows)
        <int8[2,3] W = {{1, -2, 3, -4, 5, 127}}, {scale}, int8{"[2]" if axis else ""} z = {"{0, 0}" if axis else "{0}"}>
        {{
            table = DequantizeLinear{axis} (W, s, z)
            turned = Transpose <perm = [1, 0]> (table)
            y = MatMul (x, turned)
            rows = Gather (table, ids)
        }}"""


@pytest.mark.parametrize(
    ("scale", "axis", "expected"),
    [("float s = {0.5}", "", None), ("float[2] s = {0.5, 0.25}", "<axis = 0>", 1)],
    ids=["one scale", "a scale for each row"],
)
def test_case_1_integers_are_transposed(graphs: Graphs, scale: str, axis: str, expected: int | None) -> None:
    model = graphs.parse(tied(scale, axis))
    assert graphs.apply(TransposeBeforeDequantizePass(), model, x=X, ids=IDS)
    assert sorted(graphs.operators(model)) == ["DequantizeLinear"] * 2 + ["Gather", "MatMul", "Transpose"]
    (transpose,) = (node for node in model.graph if node.op_type == "Transpose")
    assert transpose.inputs[0] is model.graph.initializers["W"]
    (user,) = (use.node for use in transpose.outputs[0].uses())
    assert user.op_type == "DequantizeLinear"
    assert user.attributes.get_int("axis", -1) == (-1 if expected is None else expected)
    assert len(model.graph.initializers) == 3


def test_case_2_a_weight_of_its_own_is_left_alone(graphs: Graphs) -> None:
    text = """agraph (float[2,3] x) => (float[2,2] y)
        <int8[2,3] W = {1, -2, 3, -4, 5, 127}, float s = {0.5}, int8 z = {0}>
        {
            table = DequantizeLinear (W, s, z)
            turned = Transpose <perm = [1, 0]> (table)
            y = MatMul (x, turned)
        }"""
    assert not graphs.apply(TransposeBeforeDequantizePass(), graphs.parse(text), x=X)


def test_case_3_a_computed_tensor_is_left_alone(graphs: Graphs) -> None:
    text = """agraph (float[2,3] x) => (float[3,2] y, float[2,3] d)
        <float s = {0.5}, int8 z = {0}>
        {
            q = QuantizeLinear (x, s, z)
            d = DequantizeLinear (q, s, z)
            y = Transpose <perm = [1, 0]> (d)
        }"""
    assert not graphs.apply(TransposeBeforeDequantizePass(), graphs.parse(text), x=X)


def test_case_3_blocks_are_left_alone(graphs: Graphs) -> None:
    text = """agraph (float[2,4] x) => (float[2,2] y, float[2,4] table)
        <int8[2,4] W = {1, -2, 3, -4, 5, 127, 7, 8}, float[2,2] s = {0.5, 1, 2, 4}, int8[2,2] z = {0, 0, 0, 0}>
        {
            table = DequantizeLinear <axis = 1, block_size = 2> (W, s, z)
            turned = Transpose <perm = [1, 0]> (table)
            y = MatMul (x, turned)
        }"""
    x = np.ones((2, 4), dtype=np.float32)
    assert not graphs.apply(TransposeBeforeDequantizePass(), graphs.parse(text), x=x)
