"""Floats of 8 bits compared with ONNX's reference evaluator, ONNX Runtime and ml_dtypes; and what they refuse."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator

from qdq.errors import RecipeError
from qdq.quantization.functional import grid, quantize_float8
from qdq.quantization.operators import fake_quantize_by_spec, fake_quantize_float8
from qdq.quantization.quantizer import Mode, Quantizer, Range
from qdq.quantization.spec import PerAxis, PerGroup, PerToken, QuantSpec
from qdq.recipes.recipe import load_recipe

FLOAT8 = QuantSpec(format="float8e4m3fn")
ALL = torch.arange(256, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
NUMBERS = ALL[ALL.isfinite()].unique()


def pair(axis: int | None) -> onnx.ModelProto:
    """x, scale -> q in float32, y; opset 19, as exports write it."""
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("Cast", ["zero"], ["z"], to=TensorProto.FLOAT8E4M3FN),
        helper.make_node("QuantizeLinear", ["x", "scale", "z"], ["q8"], **attributes),
        helper.make_node("Cast", ["q8"], ["q"], to=TensorProto.FLOAT),
        helper.make_node("DequantizeLinear", ["q8", "scale", "z"], ["y"], **attributes),
    ]
    names = {"x": None, "scale": [] if axis is None else ["n"], "zero": [] if axis is None else ["n"]}
    graph = helper.make_graph(
        nodes,
        "pair",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in names.items()],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("q", "y")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)


def hard_values() -> torch.Tensor:
    """All numbers, the ties between neighbours and what lies beside them, beyond both ends, and noise of any size."""
    ties = (NUMBERS[1:] + NUMBERS[:-1]) / 2
    beside = [torch.nextafter(ties, torch.full_like(ties, end)) for end in (-1e9, 1e9)]
    beyond = torch.tensor([448.1, 463.9, 464.0, 464.1, 480.0, 1e6, 3e38])
    torch.manual_seed(0)
    noise = torch.randn(2000) * 2 ** torch.linspace(-14, 10, 2000)
    return torch.cat([NUMBERS, ties, *beside, beyond, -beyond, noise])


@pytest.mark.parametrize("scale", [1.0, 0.0371, 3e-4], ids=str)
@pytest.mark.parametrize("judge", ["reference evaluator", "ONNX Runtime", "ml_dtypes"])
def test_numbers_equal(judge: str, scale: float) -> None:
    x, step = hard_values() * scale, torch.tensor(scale)
    feeds = {"x": x.numpy(), "scale": step.numpy(), "zero": np.float32(0)}
    if judge == "ml_dtypes":
        steps = np.clip(x.numpy() / step.numpy(), -448, 448)
        want = steps.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
        back = want * step.numpy()
    elif judge == "ONNX Runtime":
        session = ort.InferenceSession(pair(None).SerializeToString(), providers=["CPUExecutionProvider"])
        want, back = session.run(None, {**feeds, "zero": np.array(0, np.float32)})
    else:
        want, back = ReferenceEvaluator(pair(None)).run(None, feeds)
    np.testing.assert_array_equal(quantize_float8(x, step).numpy(), want)
    np.testing.assert_array_equal(fake_quantize_float8(x, step, torch.tensor(0)).numpy(), back)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_scales_per_axis_equal_onnx_runtime(axis: int) -> None:
    torch.manual_seed(1)
    x = torch.randn(5, 7) * 3
    scale = torch.rand(x.shape[axis]) / 50 + 0.001
    session = ort.InferenceSession(pair(axis % 2).SerializeToString(), providers=["CPUExecutionProvider"])
    want, back = session.run(None, {"x": x.numpy(), "scale": scale.numpy(), "zero": np.zeros(len(scale), np.float32)})
    np.testing.assert_array_equal(quantize_float8(x, scale, axis=axis).numpy(), want)
    np.testing.assert_array_equal(fake_quantize_float8(x, scale, torch.zeros(len(scale)), axis=axis).numpy(), back)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_result_has_the_type_of_the_input_and_leaves_it_alone(dtype: torch.dtype) -> None:
    x = torch.linspace(-3, 3, 101).to(dtype)
    before = x.clone()
    y = fake_quantize_float8(x, torch.tensor(0.01), torch.tensor(0))
    assert y.dtype == dtype
    assert torch.equal(x, before)
    assert torch.equal(y, (quantize_float8(x.float(), torch.tensor(0.01)) * 0.01).to(dtype))


def test_what_is_not_a_number_stays_none() -> None:
    assert quantize_float8(torch.tensor([torch.nan]), torch.tensor(1.0)).isnan().all()


def test_gradient_passes_where_nothing_saturates() -> None:
    x = torch.tensor([0.0, 1.0, -448.0, 463.0, 465.0, -1e4], requires_grad=True)
    fake_quantize_float8(x, torch.tensor(1.0), torch.tensor(0)).backward(torch.arange(1.0, 7.0))
    assert x.grad is not None
    assert x.grad.tolist() == [1, 2, 3, 4, 0, 0]


def test_operator_is_registered_correctly() -> None:
    x, scale = torch.randn(3, 4, requires_grad=True), torch.rand(4) + 0.1
    arguments = (x, scale, torch.zeros(4, dtype=torch.int32), 1)
    result = torch.library.opcheck(torch.ops.qdq.fake_quantize_float8.default, arguments)
    assert set(result.values()) == {"SUCCESS"}


def test_the_scale_maps_the_range_onto_448() -> None:
    quantizer = Quantizer(FLOAT8)
    quantizer.set_range(Range(torch.tensor(-2.0), torch.tensor(5.6), torch.tensor(5.6)))
    assert float(quantizer.scale) == pytest.approx(5.6 / 448, rel=1e-6)
    quantizer.mode = Mode.QUANTIZE
    x = torch.tensor([5.6, 100.0, -100.0, 0.0])
    assert quantizer(x).tolist() == pytest.approx([5.6, 5.6, -5.6, 0.0], rel=1e-6)
    assert quantizer.quantize(x).tolist() == [448, 448, -448, 0]


def test_relative_error_is_that_of_three_bits_of_mantissa() -> None:
    """Half a step of 2**-3 relative, down to where the numbers of a scale end: far below int8's smallest step."""
    torch.manual_seed(0)
    x = torch.exp(torch.empty(5000).uniform_(-8, 0))
    scale, zero = grid(torch.tensor(-1.0), torch.tensor(1.0), FLOAT8)
    assert float(((fake_quantize_by_spec(x, scale, zero, FLOAT8) - x) / x).abs().max()) <= 2**-4
    scale, zero = grid(torch.tensor(-1.0), torch.tensor(1.0), QuantSpec())
    assert float(((fake_quantize_by_spec(x, scale, zero, QuantSpec()) - x) / x).abs().max()) == 1


@pytest.mark.parametrize(
    ("settings", "word"),
    [
        ({"bits": 4}, "8 bits"),
        ({"signed": False}, "signed"),
        ({"symmetric": False}, "symmetric"),
        ({"narrow_range": True}, "narrow_range"),
        ({"overflow_safe": True, "granularity": PerAxis(0)}, "overflow_safe"),
        ({"dynamic": True}, "dynamic"),
        ({"learned_scale": True}, "learned_scale"),
        ({"granularity": PerGroup(32)}, r"per-group\(32\)"),
        ({"granularity": PerToken(), "dynamic": True}, "per-token"),
        ({"arithmetic": "pytorch-quantization"}, "arithmetic"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_of_integers_are_refused(settings: dict[str, Any], word: str) -> None:
    with pytest.raises(RecipeError, match=f"float8e4m3fn.*{word}"):
        QuantSpec(format="float8e4m3fn", **settings)


def test_an_unknown_format_is_refused_with_those_there_are() -> None:
    with pytest.raises(RecipeError, match="format is 'fp8', must be one of int, float8e4m3fn"):
        QuantSpec(format="fp8")


def test_the_preset_quantizes_linear_layers_alone() -> None:
    specs = {rule.spec for rule in load_recipe("fp8").rules}
    assert specs == {FLOAT8, QuantSpec(format="float8e4m3fn", granularity=PerAxis(0))}
    assert {(rule.kind, rule.slot) for rule in load_recipe("fp8").rules} == {("linear", "input"), ("linear", "weight")}
    assert str(FLOAT8) == "float8e4m3fn symmetric per-tensor"
