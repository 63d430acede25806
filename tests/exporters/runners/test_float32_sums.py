"""Operators that sum, in half precision, against the same in float64."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from exporters.runners import EvaluatorRunner

WIDTH = 384
KINDS = {
    "bfloat16": (TensorProto.BFLOAT16, np.dtype(ml_dtypes.bfloat16), 2.0**-8),
    "float16": (TensorProto.FLOAT16, np.dtype(np.float16), 2.0**-11),
    "float32": (TensorProto.FLOAT, np.dtype(np.float32), 2.0**-20),
}
LAST: dict[str, Any] = {"axis": -1}
OPERATORS: dict[str, tuple[dict[str, Any], list[str], Any]] = {
    "LayerNormalization": (LAST, ["weight"], lambda x, w: torch.nn.functional.layer_norm(x, (WIDTH,), w, eps=1e-5)),
    "Softmax": (LAST, [], lambda x: torch.softmax(x, dim=-1)),
    "LogSoftmax": (LAST, [], lambda x: torch.log_softmax(x, dim=-1)),
    "ReduceSum": ({}, ["axes"], lambda x, _: x.sum(dim=-1, keepdim=True)),
    "ReduceMean": ({}, ["axes"], lambda x, _: x.mean(dim=-1, keepdim=True)),
    "ReduceL2": ({}, ["axes"], lambda x, _: x.norm(dim=-1, keepdim=True)),
}


def proto(operator: str, kind: int, opset: int) -> bytes:
    attributes, others, _ = OPERATORS[operator]
    inputs = {"x": (kind, ["rows", WIDTH]), "weight": (kind, [WIDTH]), "axes": (TensorProto.INT64, [1])}
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", *others], ["y"], **attributes)],
        "g",
        [helper.make_tensor_value_info(name, *inputs[name]) for name in ("x", *others)],
        [helper.make_tensor_value_info("y", kind, None)],
    )
    imports = [helper.make_opsetid("", opset)]
    return bytes(helper.make_model(graph, opset_imports=imports, ir_version=10).SerializeToString())


def values(dtype: np.dtype[Any]) -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    x, weight = random.random((5, WIDTH)), random.normal(size=WIDTH)
    return {"x": x.astype(dtype), "weight": weight.astype(dtype), "axes": np.array([-1])}


@pytest.mark.parametrize("opset", [18, 21])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("operator", OPERATORS)
def test_a_sum_is_rounded_once(operator: str, kind: str, opset: int) -> None:
    onnx_kind, dtype, rounding = KINDS[kind]
    _, others, torch_function = OPERATORS[operator]
    given = {name: array for name, array in values(dtype).items() if name in ("x", *others)}
    expected = torch_function(*(torch.from_numpy(array.astype(np.float64)) for array in given.values())).numpy()
    found = EvaluatorRunner(proto(operator, onnx_kind, opset))(given)["y"]
    assert found.dtype == dtype
    np.testing.assert_allclose(found.astype(np.float64), expected, rtol=rounding, atol=rounding)


def test_the_evaluator_alone_is_off_by_percents() -> None:
    """Why there are operators of our own; when this fails, there need be none."""
    given = values(KINDS["bfloat16"][1])
    model = proto("ReduceSum", TensorProto.BFLOAT16, 21)
    (found,) = ReferenceEvaluator(model).run(None, {name: given[name] for name in ("x", "axes")})
    expected = given["x"].astype(np.float64).sum(axis=-1, keepdims=True)
    assert np.abs(found.astype(np.float64) / expected - 1).max() > 0.01
