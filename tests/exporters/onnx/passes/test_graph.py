from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir

from exporters.onnx.passes.graph import constant, initializer, is_op, only_consumer, producer, stored_matrix

if TYPE_CHECKING:
    from tests.exporters.onnx.conftest import Graphs

GRAPH = """
    g (float[n] x) => (float[n] y, float[n] out) <float w = {2.0}> {
        one = Constant<value_float=1.0>()
        a = Mul(x, w)
        b = Add(a, one)
        out = Neg(b)
        y = Neg(out)
    }"""


def test_standard_operators_are_told_from_others_of_the_same_name(graphs: Graphs) -> None:
    mul = next(node for node in graphs.parse(GRAPH).graph if node.op_type == "Mul")
    assert is_op(mul, "Add", "Mul")
    assert not is_op(mul, "Add")
    assert not is_op(None, "Mul")
    assert not is_op(ir.node("Mul", mul.inputs, domain="com.microsoft"), "Mul")


def test_who_makes_and_who_reads_a_tensor(graphs: Graphs) -> None:
    graph = graphs.parse(GRAPH).graph
    _, mul, add, inner, outer = graph
    assert producer(add.inputs[0], "Mul") is mul
    assert producer(add.inputs[0], "Add") is None
    assert producer(mul.inputs[0], "Mul") is None  # an input of the graph
    assert only_consumer(mul.outputs[0]) is add
    assert only_consumer(mul.outputs[0], "Neg") is None
    assert only_consumer(inner.outputs[0]) is None  # an output as well
    assert only_consumer(outer.outputs[0]) is None  # nobody


def test_constants_are_initializers_and_constant_nodes(graphs: Graphs) -> None:
    _, mul, add, *_ = graphs.parse(GRAPH).graph
    assert constant(mul.inputs[1]) == np.float32(2)
    assert constant(add.inputs[1]) == np.float32(1)
    assert constant(add.inputs[0]) is None
    assert constant(None) is None


def test_a_stored_matrix_may_be_turned_around_on_the_way(graphs: Graphs) -> None:
    graph = graphs.parse("""
        g (float[2,2] x) => (float[2,2] y)
        <float[2,3] w = {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}, float[2] v = {1.0, 2.0}> {
            t = Transpose<perm=[1, 0]>(w)
            u = Transpose(w)
            s = Transpose<perm=[0, 1]>(w)
            c = Transpose(x)
            y = Neg(c)
        }""").graph
    w, v = (graph.initializers[name] for name in ("w", "v"))
    rows = np.float32([[1, 2, 3], [4, 5, 6]])
    turned, turned_too, same, computed = (node.outputs[0] for node in list(graph)[:4])
    for value, expected in ((w, rows), (turned, rows.T), (turned_too, rows.T), (same, rows)):
        np.testing.assert_array_equal(stored_matrix(value), expected)
    assert [stored_matrix(value) for value in (v, computed, graph.inputs[0], None)] == [None] * 4


def test_equal_initializers_are_one_and_others_get_another_name(graphs: Graphs) -> None:
    graph = graphs.parse(GRAPH).graph
    first = initializer(graph, "new", np.int8([1, 2]))
    assert initializer(graph, "new", np.int8([1, 2])) is first
    others = [np.int8([1, 3]), np.uint8([1, 2]), np.int8([[1, 2]])]
    made = [initializer(graph, "new", array) for array in others]
    assert len({value.name for value in (first, *made)}) == 4
    for value, array in zip(made, others, strict=True):
        np.testing.assert_array_equal(value.const_value.numpy(), array)
