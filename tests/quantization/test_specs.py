"""Every kind of quantization in a whole model, against references that are not ours: numpy, onnx, plain torch."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from qdq.models.ops import MatMul
from qdq.quantization.quantizer import quantizers
from qdq.quantization.spec import PerAxis, PerGroup, PerTensor, PerToken, QuantSpec

if TYPE_CHECKING:
    from torch import nn

    from qdq.models.model import Model
    from qdq.quantization.modules import QuantAdd, QuantLinear, QuantMatMul
    from qdq.quantization.quantizer import Quantizer
    from tests.quantization.conftest import QuantizedModels

UNSIGNED = {"signed": False}
AFFINE = {"symmetric": False}
CHANNELS = {"granularity": PerAxis(0)}

# What activations and weights may be, each kind by its own name.
ACTIVATIONS: dict[str, QuantSpec] = {
    **{f"int{bits}": QuantSpec(bits=bits) for bits in range(2, 9)},
    **{f"uint{bits} affine": QuantSpec(bits=bits, **UNSIGNED, **AFFINE) for bits in range(2, 9)},
    "uint8": QuantSpec(**UNSIGNED),
    "uint4": QuantSpec(bits=4, **UNSIGNED),
    "int8 affine": QuantSpec(**AFFINE),
    "int8 narrow": QuantSpec(narrow_range=True),
    "int5 narrow affine": QuantSpec(bits=5, narrow_range=True, **AFFINE),
    "dynamic": QuantSpec(dynamic=True),
    "dynamic uint8 affine": QuantSpec(dynamic=True, **UNSIGNED, **AFFINE),
    "dynamic int4 narrow": QuantSpec(bits=4, dynamic=True, narrow_range=True),
    "token": QuantSpec(dynamic=True, granularity=PerToken()),
    "token uint8 affine": QuantSpec(dynamic=True, granularity=PerToken(), **UNSIGNED, **AFFINE),
    "learned": QuantSpec(learned_scale=True),
    "learned uint8 affine": QuantSpec(learned_scale=True, **UNSIGNED, **AFFINE),
}
WEIGHTS: dict[str, QuantSpec] = {
    **{f"int{bits} channel": QuantSpec(bits=bits, **CHANNELS) for bits in range(2, 9)},
    "uint8": QuantSpec(**UNSIGNED),
    "uint4 affine channel": QuantSpec(bits=4, **UNSIGNED, **AFFINE, **CHANNELS),
    "int8 last axis": QuantSpec(granularity=PerAxis(-1)),
    "int8 narrow": QuantSpec(narrow_range=True),
    "int8 overflow safe": QuantSpec(overflow_safe=True, **CHANNELS),
    "int4 group 8": QuantSpec(bits=4, granularity=PerGroup(8)),
    "int4 group 7": QuantSpec(bits=4, granularity=PerGroup(7)),  # 32 and 48 leave a last group of 4 and of 6
    "uint4 affine group 7": QuantSpec(bits=4, granularity=PerGroup(7), **UNSIGNED, **AFFINE),
    "int2 group larger than the weight": QuantSpec(bits=2, granularity=PerGroup(100)),
    "dynamic": QuantSpec(dynamic=True, **CHANNELS),
    "learned channel": QuantSpec(learned_scale=True, **CHANNELS),
    "learned uint4 affine": QuantSpec(bits=4, learned_scale=True, **UNSIGNED, **AFFINE),
}
KINDS = [
    *(pytest.param(spec, QuantSpec(), id=f"activations {name}") for name, spec in ACTIVATIONS.items()),
    *(pytest.param(QuantSpec(), spec, id=f"weights {name}") for name, spec in WEIGHTS.items()),
]
# One of each sort, both sides at once.
DISTINCT = [
    pytest.param(ACTIVATIONS[activation], WEIGHTS[weight], id=f"{activation} x {weight}")
    for activation, weight in (
        ("int2", "int2 channel"),
        ("int8", "int8 narrow"),
        ("uint8 affine", "uint4 affine channel"),
        ("int5 narrow affine", "int8 last axis"),
        ("dynamic uint8 affine", "int4 group 7"),
        ("token", "dynamic"),
        ("learned", "learned channel"),
        ("learned uint8 affine", "learned uint4 affine"),
    )
]


# --- the reference: numpy in float32 ---


def bounds(spec: QuantSpec) -> tuple[int, int]:
    """Lowest and highest integer, counted from two's complement."""
    if not spec.signed:
        return 0, 2**spec.bits - 1
    return -(2 ** (spec.bits - 1)) + spec.narrow_range, 2 ** (spec.bits - 1) - 1


def spread(values: np.ndarray, spec: QuantSpec, x: np.ndarray) -> np.ndarray:
    """One number for each of ``x``."""
    match spec.granularity:
        case PerTensor() | PerToken():
            return np.broadcast_to(values, x.shape)
        case PerAxis(axis):
            shape = [1] * x.ndim
            shape[axis] = -1
            return np.broadcast_to(values.reshape(shape), x.shape)
        case PerGroup(size):
            return values[..., np.arange(x.shape[-1]) // size]
    raise AssertionError(spec)


def extremes(x: np.ndarray, spec: QuantSpec) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest value of what shares a scale."""
    match spec.granularity:
        case PerTensor():
            return x.min(), x.max()
        case PerToken():
            return x.min(-1, keepdims=True), x.max(-1, keepdims=True)
        case PerAxis(axis):
            others = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
            return x.min(others), x.max(others)
        case PerGroup(size):
            parts = np.split(x, range(size, x.shape[-1], size), axis=-1)
            return np.stack([p.min(-1) for p in parts], -1), np.stack([p.max(-1) for p in parts], -1)
    raise AssertionError(spec)


def grid(x: np.ndarray, spec: QuantSpec) -> tuple[np.ndarray, np.ndarray]:
    """Scale and zero point of the range of ``x`` itself."""
    (low, high), (qmin, qmax) = extremes(x, spec), bounds(spec)
    if spec.symmetric:
        middle = 0 if spec.signed else 2 ** (spec.bits - 1)
        scale = np.maximum(np.abs(low), np.abs(high)) / np.float32(qmax - middle)
        return scale, np.full(scale.shape, middle, np.int32)
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    scale = (high - low) / np.float32(qmax - qmin)
    return scale, np.clip(np.rint(qmin - low / scale), qmin, qmax).astype(np.int32)


def integers(x: np.ndarray, scale: np.ndarray, zero: np.ndarray, spec: QuantSpec) -> np.ndarray:
    qmin, qmax = bounds(spec)
    return np.clip(np.rint(x / spread(scale, spec, x)) + spread(zero, spec, x), qmin, qmax)


def expected(x: Tensor, quantizer: Quantizer) -> Tensor:
    """What ``quantizer`` has to make of ``x``."""
    spec, values = quantizer.spec, x.float().cpu().numpy()
    if spec.dynamic:
        scale, zero = grid(values, spec)
    else:
        scale, zero = quantizer.scale.detach().cpu().numpy(), quantizer.zero_point.cpu().numpy()
    q = integers(values, scale, zero, spec)
    y = ((q - spread(zero, spec, values)) * spread(scale, spec, values)).astype(np.float32)
    return torch.from_numpy(y).to(x.dtype)


def check_every_tensor(model: Model, inputs: dict[str, Tensor], quantized_models: QuantizedModels) -> None:
    dtype = model.embeddings.word.weight.dtype
    with torch.no_grad(), quantized_models.watched(model) as passes:
        output = model(**inputs).last_hidden_state
    assert output.dtype == dtype
    assert bool(output.isfinite().all())
    assert len(passes) == 20
    for name, quantizer, x, y in passes:
        assert y.dtype == x.dtype == dtype, name
        want = expected(x, quantizer)
        assert torch.equal(y.cpu(), want), f"{name}: {int((y.cpu() != want).sum())} of {y.numel()}"
    assert {q.scale.dtype for _, q in quantizers(model) if hasattr(q, "scale")} <= {torch.float32}


@pytest.mark.parametrize(("activation", "weight"), KINDS)
def test_every_tensor_equals_the_reference_exactly(
    activation: QuantSpec, weight: QuantSpec, device: torch.device, quantized_models: QuantizedModels
) -> None:
    model = quantized_models.specified(activation, weight, num_hidden_layers=1).to(device)
    check_every_tensor(
        model, {name: tensor.to(device) for name, tensor in quantized_models.inputs().items()}, quantized_models
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(("activation", "weight"), DISTINCT)
def test_every_tensor_in_half_precision_equals_the_reference_exactly(
    activation: QuantSpec,
    weight: QuantSpec,
    dtype: torch.dtype,
    device: torch.device,
    quantized_models: QuantizedModels,
) -> None:
    model = quantized_models.specified(activation, weight, num_hidden_layers=1).to(device, dtype)
    check_every_tensor(
        model, {name: tensor.to(device) for name, tensor in quantized_models.inputs().items()}, quantized_models
    )


STORED = [pytest.param(s, id=name) for name, s in WEIGHTS.items() if not (s.overflow_safe or s.dynamic)]


@pytest.mark.parametrize("spec", STORED)
def test_grid_of_a_weight_is_that_of_its_range(spec: QuantSpec, quantized_models: QuantizedModels) -> None:
    model = quantized_models.specified(QuantSpec(), spec)
    for layer in model.encoder.layers:
        for linear in (layer.attention.key, layer.feed_forward.down):
            scale, zero = grid(linear.weight.detach().numpy(), spec)
            assert linear.weight_quantizer.scale.shape == spec.scale_shape(linear.weight.shape)
            np.testing.assert_array_equal(linear.weight_quantizer.scale.detach().numpy(), scale)
            np.testing.assert_array_equal(linear.weight_quantizer.zero_point.numpy(), zero)


# --- the reference: onnx, for the integers that it has ---

ONNX_TYPES = {
    (8, True): TensorProto.INT8,
    (8, False): TensorProto.UINT8,
    (4, True): TensorProto.INT4,
    (4, False): TensorProto.UINT4,
}


def onnx_pair(x: np.ndarray, scale: np.ndarray, zero: np.ndarray, spec: QuantSpec) -> np.ndarray:
    """QuantizeLinear and DequantizeLinear by onnx's own evaluator."""
    kind = ONNX_TYPES[spec.bits, spec.signed]
    attributes: dict[str, Any] = {}
    if spec.axis is not None:
        attributes = {"axis": spec.axis}
    elif spec.group is not None:
        attributes = {"axis": x.ndim - 1, "block_size": spec.group}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], **attributes),
    ]
    initializers = [
        numpy_helper.from_array(scale, "scale"),
        helper.make_tensor("zero", kind, zero.shape, zero.flatten().tolist()),
    ]
    shape = [*x.shape]
    graph = helper.make_graph(
        nodes, "pair", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)], initializers,
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    onnx.checker.check_model(model)
    (y,) = ReferenceEvaluator(model).run(None, {"x": x})
    return np.asarray(y)


@pytest.mark.parametrize(
    ("activation", "weight"),
    [
        pytest.param(QuantSpec(), QuantSpec(**CHANNELS), id="int8"),
        pytest.param(QuantSpec(**UNSIGNED, **AFFINE), QuantSpec(**UNSIGNED, **AFFINE, **CHANNELS), id="uint8 affine"),
        pytest.param(QuantSpec(**UNSIGNED), QuantSpec(granularity=PerAxis(1)), id="uint8"),
        pytest.param(QuantSpec(bits=4), QuantSpec(bits=4, granularity=PerGroup(8)), id="int4 group"),
        pytest.param(
            QuantSpec(bits=4, **UNSIGNED, **AFFINE),
            QuantSpec(bits=4, granularity=PerGroup(16), **UNSIGNED, **AFFINE),
            id="uint4 affine group",
        ),
        pytest.param(
            QuantSpec(learned_scale=True), QuantSpec(learned_scale=True, **CHANNELS), id="int8 with learned scales"
        ),
    ],
)
def test_every_tensor_equals_onnx_exactly(
    activation: QuantSpec, weight: QuantSpec, quantized_models: QuantizedModels
) -> None:
    model = quantized_models.specified(activation, weight, num_hidden_layers=1)
    with torch.no_grad(), quantized_models.watched(model) as passes:
        model(**quantized_models.inputs())
    assert len(passes) == 20
    for name, quantizer, x, y in passes:
        scale, zero = quantizer.scale.detach().numpy(), quantizer.zero_point.numpy()
        np.testing.assert_array_equal(y.numpy(), onnx_pair(x.numpy(), scale, zero, quantizer.spec), err_msg=name)


def test_dynamic_integers_equal_onnx_runtime(quantized_models: QuantizedModels) -> None:
    """DynamicQuantizeLinear is uint8, affine and per tensor."""
    node = helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"])
    graph = helper.make_graph(
        [node], "dynamic", [helper.make_tensor_value_info("x", TensorProto.FLOAT, None)],
        [helper.make_tensor_value_info("q", TensorProto.UINT8, None),
         helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
         helper.make_tensor_value_info("zero", TensorProto.UINT8, [])],
    )  # fmt: skip
    file = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = onnxruntime.InferenceSession(file.SerializeToString(), providers=["CPUExecutionProvider"])
    model = quantized_models.specified(QuantSpec(dynamic=True, **UNSIGNED, **AFFINE), QuantSpec())
    with torch.no_grad(), quantized_models.watched(model) as passes:
        model(**quantized_models.inputs())
    seen = [each for each in passes if each.quantizer.spec.dynamic]
    assert len(seen) == 2 * 14
    for name, quantizer, x, _ in seen:
        q, scale, zero = session.run(None, {"x": x.numpy()})
        mine, at = quantizer.grid(x)
        assert float(mine) == float(scale), name
        assert int(at) == int(zero), name
        np.testing.assert_array_equal(quantizer.quantize(x).numpy(), q.astype(np.float32), err_msg=name)


# --- gradients: plain torch ---


def straight_through(x: Tensor, quantizer: Quantizer) -> Tensor:
    """Fake quantization with a gradient of one where the integer is not saturated: what is detached has none."""
    spec, values = quantizer.spec, x.detach().numpy()
    found = grid(values, spec) if spec.dynamic else (quantizer.scale.detach().numpy(), quantizer.zero_point.numpy())
    scale, zero = (torch.from_numpy(spread(np.asarray(part), spec, values).copy()) for part in found)
    qmin, qmax = bounds(spec)
    q = (x.detach() / scale).round() + zero
    passing = x * ((q >= qmin) & (q <= qmax))
    return ((q.clamp(qmin, qmax) - zero) * scale - passing).detach() + passing


class PlainLinear(torch.nn.Module):
    """A wrapped linear written out."""

    def __init__(self, wrapped: QuantLinear) -> None:
        super().__init__()
        self.wrapped = wrapped

    def forward(self, x: Tensor) -> Tensor:
        w = self.wrapped
        a = straight_through(x, w.input_quantizer)
        return torch.nn.functional.linear(a, straight_through(w.weight, w.weight_quantizer), w.bias)


class PlainPair(torch.nn.Module):
    """A wrapped product or addition written out."""

    def __init__(self, wrapped: QuantMatMul | QuantAdd) -> None:
        super().__init__()
        self.wrapped = wrapped

    def forward(self, x: Tensor, other: Tensor) -> Tensor:
        w = self.wrapped
        a, b = straight_through(x, w.input_quantizer), straight_through(other, w.other_quantizer)
        if isinstance(w, MatMul):
            return a @ (b.transpose(-1, -2) if w.transpose_other else b)
        return a + b


def plain(model: nn.Module) -> nn.Module:
    """The wrapped modules in the encoder of ``model`` replaced by plain torch, with the same Parameters."""
    for layer in model.encoder.layers:  # type: ignore[union-attr]
        for block, names in (
            (layer.attention, ("query", "key", "value", "output", "scores", "context", "add")),
            (layer.feed_forward, ("up", "down", "add")),
        ):
            for name in names:
                module = getattr(block, name)
                kind = PlainLinear if hasattr(module, "weight") else PlainPair
                setattr(block, name, kind(module))
    return model


@pytest.mark.parametrize(("activation", "weight"), [case for case in KINDS if "learned" not in str(case.id)])
def test_gradients_equal_straight_through_in_plain_torch(
    activation: QuantSpec, weight: QuantSpec, quantized_models: QuantizedModels
) -> None:
    model = quantized_models.specified(activation, weight, "bert", "masked-lm", num_hidden_layers=1)
    inputs = quantized_models.inputs("bert", "masked-lm")
    got = quantized_models.gradients(model, inputs)
    written_out = quantized_models.gradients(plain(model), inputs)
    want = {name.replace(".wrapped.", "."): gradient for name, gradient in written_out.items()}
    assert set(got) == set(want)
    largest = max(float(gradient.abs().max()) for gradient in want.values())
    assert largest > 1e-2
    for name, gradient in want.items():
        difference = float((got[name] - gradient).abs().max())
        assert difference <= 1e-5 * largest, name


# --- training ---


@pytest.mark.parametrize(("activation", "weight"), DISTINCT)
def test_training_lowers_the_loss(
    activation: QuantSpec, weight: QuantSpec, device: torch.device, quantized_models: QuantizedModels
) -> None:
    task = "sequence-classification"
    model = quantized_models.specified(activation, weight, "bert", task, num_hidden_layers=1).to(device).train()
    inputs = {name: tensor.to(device) for name, tensor in quantized_models.inputs("bert", task).items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.isfinite(losses).all()
    assert np.mean(losses[-3:]) < 0.7 * losses[0], losses
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
