"""Every form of a matrix product is found, wherever it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from exporters.onnx.inspect import inspect_graph
from exporters.profile import profile
from qdq.errors import CheckpointError

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

DRAW = np.random.default_rng(0)
F = TensorProto.FLOAT
SIZE = 16


def weight(*shape: int) -> NDArray[np.float32]:
    return DRAW.normal(size=shape or (SIZE, SIZE)).astype(np.float32)


def stored(**arrays: Any) -> list[onnx.TensorProto]:
    return [numpy_helper.from_array(np.asarray(array), name) for name, array in arrays.items()]


def written(
    path: Path, nodes: list[Any], arrays: dict[str, Any], *, output: int = F, functions: Any = (), opset: int = 17
) -> Path:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", F, ["batch", SIZE])],
        [helper.make_tensor_value_info("y", output, None)],
        stored(**arrays),
    )
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1), helper.make_opsetid("own", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=8, functions=list(functions)), path)
    return path


def found(path: Path) -> list[tuple[str, str, str]]:
    return [(product.name, product.kind, product.runs_in) for product in inspect_graph(path).products]


def branch(name: str) -> onnx.GraphProto:
    node = helper.make_node("MatMul", ["h", f"w_{name}"], [f"y_{name}"], name=f"in_{name}")
    result = helper.make_tensor_value_info(f"y_{name}", F, None)
    return helper.make_graph([node], name, [], [result], stored(**{f"w_{name}": weight()}))


def test_products_in_both_branches_of_an_if(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="first"),
        helper.make_node("ReduceSum", ["x"], ["s"], keepdims=0),
        helper.make_node("Greater", ["s", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["y"], then_branch=branch("then"), else_branch=branch("else")),
    ]
    path = written(tmp_path / "if.onnx", nodes, {"w": weight(), "zero": np.float32(0)})
    assert sorted(found(path)) == [(name, "linear", "float") for name in ("first", "in_else", "in_then")]
    report = inspect_graph(path)
    assert report.bytes_by_type["FLOAT"] == 3 * 4 * SIZE * SIZE + 4
    assert report.operators["MatMul"] == 3
    ran = profile(path, batch_size=2, seq_len=SIZE, threads=1, runs=2, warmup=1)
    assert "If" not in {node.operator for node in ran.nodes}  # its time is that of the branch
    assert ran.macs == 2 * 2 * SIZE * SIZE  # only one branch is taken


def test_a_loop_runs_its_product_several_times(tmp_path: Path) -> None:
    body = helper.make_graph(
        [helper.make_node("MatMul", ["s", "w"], ["n"], name="inside"), helper.make_node("Identity", ["go"], ["on"])],
        "body",
        [
            helper.make_tensor_value_info("i", TensorProto.INT64, []),
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("s", F, None),
        ],
        [helper.make_tensor_value_info("on", TensorProto.BOOL, []), helper.make_tensor_value_info("n", F, None)],
    )
    nodes = [helper.make_node("Loop", ["times", "true", "x"], ["y"], body=body)]
    arrays = {"w": weight(), "times": np.int64(3), "true": np.bool_(True)}
    path = written(tmp_path / "loop.onnx", nodes, arrays)
    assert found(path) == [("inside", "linear", "float")]
    ran = profile(path, batch_size=2, seq_len=SIZE, threads=1, runs=2, warmup=1)
    assert ran.macs == 3 * 2 * SIZE * SIZE
    assert [node.name for node in ran.products_in_float()] == ["inside"]


@pytest.mark.parametrize("opset", [17, 18])
def test_a_function_is_looked_at_in_place_of_each_call(tmp_path: Path, opset: int) -> None:
    body = [
        helper.make_node("MatMul", ["a", "w"], ["m"], name="inner"),
        helper.make_node("Add", ["m", "b"], ["r"]),
    ]
    function = helper.make_function("own", "Linear", ["a", "w", "b"], ["r"], body, [helper.make_opsetid("", opset)])
    nodes = [
        helper.make_node("Linear", ["x", "w1", "b"], ["h"], domain="own"),
        helper.make_node("Linear", ["h", "w2", "b"], ["y"], domain="own"),
    ]
    arrays = {"w1": weight(), "w2": weight(), "b": weight(SIZE)}
    path = written(tmp_path / "function.onnx", nodes, arrays, functions=[function])
    assert [(kind, runs_in) for _, kind, runs_in in found(path)] == [("linear", "float")] * 2
    assert inspect_graph(path).operators == {"MatMul": 2, "Add": 2}


def test_a_function_that_calls_itself_is_an_error_for_people(tmp_path: Path) -> None:
    body = [helper.make_node("Ring", ["a"], ["r"], domain="own")]
    ring = helper.make_function("own", "Ring", ["a"], ["r"], body, [helper.make_opsetid("own", 1)])
    nodes = [helper.make_node("Ring", ["x"], ["y"], domain="own")]
    with pytest.raises(CheckpointError, match="its functions cannot be read"):
        inspect_graph(written(tmp_path / "ring.onnx", nodes, {}, functions=[ring]))


SCALE, ZERO = np.float32(0.1), np.int8(0)
INTEGERS = DRAW.integers(-127, 128, (SIZE, SIZE)).astype(np.int8)
PAIR = [
    helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
    helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"]),
]
MATMUL = helper.make_node("MatMul", ["d", "v"], ["y"], name="dense")


@pytest.mark.parametrize(
    ("nodes", "arrays", "expected"),
    [
        pytest.param(
            [
                helper.make_node("QuantizeLinear", ["w", "s", "z"], ["wq"]),
                helper.make_node("DequantizeLinear", ["wq", "s", "z"], ["v"]),
            ],
            {"w": weight()},
            ("linear", "int8"),
            id="weight quantized in the graph",
        ),
        pytest.param(
            [
                helper.make_node("DequantizeLinear", ["w", "s", "z"], ["t"]),
                helper.make_node("Identity", ["t"], ["i"]),
                helper.make_node("Transpose", ["i"], ["v"]),
            ],
            {"w": INTEGERS},
            ("linear", "int8"),
            id="behind Identity and Transpose",
        ),
        pytest.param(
            [
                helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(INTEGERS)),
                helper.make_node("DequantizeLinear", ["w", "s", "z"], ["v"]),
            ],
            {},
            ("linear", "int8"),
            id="Constant",
        ),
        pytest.param(
            [
                helper.make_node("Cast", ["w"], ["c"], to=F),
                helper.make_node("Mul", ["c", "s"], ["v"]),
            ],
            {"w": INTEGERS},
            ("linear", "float"),
            id="dequantized by hand",
        ),
        pytest.param(
            [helper.make_node("Transpose", ["d"], ["v"])],
            {},
            ("attention", "int8"),
            id="both computed",
        ),
        pytest.param(
            [
                helper.make_node("QuantizeLinear", ["x", "s", "wide"], ["xq"], domain="com.microsoft"),
                helper.make_node("DequantizeLinear", ["xq", "s", "wide"], ["xd"], domain="com.microsoft"),
                helper.make_node("Transpose", ["xd"], ["v"]),
            ],
            {"wide": np.uint16(0)},
            ("attention", "float"),
            id="16 bits",
        ),
    ],
)
def test_operands_of_a_product(tmp_path: Path, nodes: list[Any], arrays: dict[str, Any], expected: Any) -> None:
    path = written(tmp_path / "one.onnx", [*PAIR, *nodes, MATMUL], {"s": SCALE, "z": ZERO, **arrays})
    assert found(path) == [("dense", *expected)]


Q = ["x", "s", "z"]


@pytest.mark.parametrize(
    ("operator", "inputs", "domain", "expected"),
    [
        ("MatMulInteger", ["q", "w"], "", [("linear", "int8")]),
        ("QLinearMatMul", ["q", "s", "z", "w", "s", "z", "s", "z"], "", [("linear", "int8")]),
        ("QLinearMatMul", ["q", "s", "z", "q", "s", "z", "s", "z"], "", [("attention", "int8")]),
        ("QGemm", ["q", "s", "z", "w", "s", "z"], "com.microsoft", [("linear", "int8")]),
        ("DynamicQuantizeMatMul", ["x", "w", "s"], "com.microsoft", [("linear", "int8")]),
        ("QAttention", ["q", "w", "b", "s", "s"], "com.microsoft", [("linear", "int8"), ("attention", "float")]),
        ("Attention", ["x", "w", "b"], "com.microsoft", [("linear", "float"), ("attention", "float")]),
        ("MultiHeadAttention", ["x", "x", "x"], "com.microsoft", [("attention", "float")]),
        ("MatMulNBits", ["x", "w", "s"], "com.microsoft", [("linear", "float")]),
        ("GemmFastGelu", ["x", "f"], "com.microsoft", [("linear", "float")]),
        ("Einsum", ["x", "f"], "", [("linear", "float")]),
        ("Conv", ["x", "f"], "", [("linear", "float")]),
        ("Relu", ["x"], "", []),
    ],
)
def test_operators_that_multiply(tmp_path: Path, operator: str, inputs: list[str], domain: str, expected: Any) -> None:
    nodes = [PAIR[0], helper.make_node(operator, inputs, ["y"], domain=domain)]
    arrays = {"s": SCALE, "z": ZERO, "w": INTEGERS, "f": weight(), "b": weight(SIZE)}
    path = written(tmp_path / "one.onnx", nodes, arrays)
    # A node without a name is shown by what it computes.
    assert found(path) == [(f"{operator} -> y", *one) for one in expected]
