"""What TensorRT tells about kernels: texts in the forms of each version, and the real thing."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from exporters.tensorrt.kernels import Kernel, parse_inspector, parse_layers, short_type

if TYPE_CHECKING:
    from pathlib import Path

    from tests.exporters.tensorrt.conftest import BuiltEngine

MESSAGE = (
    "Layers:\n"
    "Name: __mye1_0, LayerType: shape_call, Inputs: [], Constants: [], Outputs: [], TacticName: , StreamId: 0, "
    "Metadata: \n"
    "Name: a/MatMul+b/MatMul_myl0_2, LayerType: gemm, Inputs: [ { Name: x[0], Dimensions: [-1,64], Datatype: Int8, "
    "Format: (Linear) Row major }], Constants: [ { Name: w, Dimensions: [64,128], Datatype: Int8, Format: x }, "
    "{ Name: alpha, Dimensions: [1], Datatype: Float, Format: x }], Outputs: [ { Name: y, Dimensions: [-1,128], "
    "Datatype: Half, Format: x }], TacticName: sm80, StreamId: 0, "
    "Metadata: [ONNX Layer: a/MatMul][ONNX Layer: b/MatMul]\n"
    "\nI/O Tensors:\n Name: x, IOMode: Input, DataType: Int64\n"
)


def test_the_builders_message() -> None:
    first, second = parse_layers(MESSAGE)
    assert first == Kernel("__mye1_0", "shape_call", (), (), (), ())
    assert second == Kernel(
        "a/MatMul+b/MatMul_myl0_2", "gemm", ("int8",), ("int8", "fp32"), ("fp16",), ("a/MatMul", "b/MatMul")
    )
    assert Kernel.from_dict(json.loads(json.dumps(second.to_dict()))) == second


@pytest.mark.parametrize(
    "tensor",
    [
        {"Name": "x", "Format/Datatype": "Row major linear INT8 format"},
        {"Name": "x", "Format": "Row major linear INT8 format"},
        {"Name": "x", "Datatype": "Int8", "Format": "Row major linear"},
    ],
    ids=["10.x", "10.x, other key", "11.x"],
)
def test_the_inspectors_json(tensor: dict[str, str]) -> None:
    layer = {
        "Name": "gemm",
        "LayerType": "gemm",
        "Inputs": [tensor],
        "Outputs": [tensor],
        "Metadata": "[ONNX Layer: a/MatMul]\u001e[ONNX Layer: a/Add]",
    }
    (kernel,) = parse_inspector(json.dumps({"Layers": [layer], "Bindings": []}))
    assert kernel == Kernel("gemm", "gemm", ("int8",), (), ("int8",), ("a/MatMul", "a/Add"))


def test_without_details_there_are_names() -> None:
    assert [kernel.name for kernel in parse_inspector('{"Layers": ["a", "b"]}')] == ["a", "b"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Int8", "int8"), ("FP8", "fp8"), ("Half", "fp16"), ("BFloat16", "bf16"), ("Float", "fp32"), ("Int64", "int64")],
)
def test_types_have_short_names(text: str, expected: str) -> None:
    assert short_type(text) == expected


def test_the_real_message_names_every_product(built_engine: BuiltEngine, small_model: Path) -> None:
    import onnx_ir as ir

    products = {node.name for node in ir.load(small_model).graph if node.op_type in ("MatMul", "Gemm")}
    engine, _ = built_engine
    told = {name for kernel in engine.kernels for name in kernel.nodes}
    assert len(products) == 9
    assert products <= told
    assert all(kernel.outputs for kernel in engine.kernels if kernel.nodes)
