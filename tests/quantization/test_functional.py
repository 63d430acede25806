"""The arithmetic compared with ONNX Runtime, onnx's reference, torch's own fake quantize and plain autograd."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor

from qdq.quantization.functional import dequantize, quantize, scale_and_zero_point, value_range
from qdq.quantization.operators import fake_quantize, scale_gradient
from qdq.quantization.spec import PerAxis, PerGroup, PerTensor, PerToken, QuantSpec

TINY = torch.finfo(torch.float32).tiny
SPECS = [
    pytest.param(QuantSpec(bits=bits, signed=signed, symmetric=symmetric, narrow_range=narrow), id=str_id)
    for bits in range(2, 9)
    for signed, symmetric, narrow, str_id in [
        (True, True, False, f"int{bits}-symmetric"),
        (True, True, True, f"int{bits}-narrow"),
        (True, False, False, f"int{bits}-affine"),
        (False, True, False, f"uint{bits}-symmetric"),
        (False, False, False, f"uint{bits}-affine"),
    ]
]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The tensors here are tiny: threads would only wait for each other."""
    torch.set_num_threads(1)


@cache
def onnx_model(signed: bool, axis: int | None) -> onnx.ModelProto:
    """x, scale, zero_point -> q and its dequantized value."""
    kind = TensorProto.INT8 if signed else TensorProto.UINT8
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero_point"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero_point"], ["y"], **attributes),
    ]
    rank = None if axis is None else 3
    shape = [] if axis is None else ["channels"]
    inputs = [
        helper.make_tensor_value_info("x", TensorProto.FLOAT, None if rank is None else ["a", "b", "c"]),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("zero_point", kind, shape),
    ]
    outputs = [
        helper.make_tensor_value_info("q", kind, None),
        helper.make_tensor_value_info("y", TensorProto.FLOAT, None),
    ]
    graph = helper.make_graph(nodes, "qdq", inputs, outputs)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@cache
def onnx_session(signed: bool, axis: int | None) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    return ort.InferenceSession(onnx_model(signed, axis).SerializeToString(), options, ["CPUExecutionProvider"])


def onnx_feeds(x: Tensor, scale: Tensor, zero_point: Tensor, signed: bool) -> dict[str, np.ndarray]:
    kind = np.int8 if signed else np.uint8
    return {"x": x.float().numpy(), "scale": scale.numpy(), "zero_point": zero_point.numpy().astype(kind)}


def expect_integers_of_onnx_runtime(
    x: Tensor, scale: Tensor, zero_point: Tensor, spec: QuantSpec, axis: int | None = None
) -> None:
    """Integers of fewer than 8 bits are those of 8, clipped: saturating twice is saturating to the narrower."""
    feeds = onnx_feeds(x, scale, zero_point, spec.signed)
    (want,) = onnx_session(spec.signed, axis).run(["q"], feeds)
    got = quantize(x, scale, zero_point, qmin=spec.qmin, qmax=spec.qmax, axis=axis)
    assert got.dtype == torch.float32
    np.testing.assert_array_equal(got.numpy(), want.clip(spec.qmin, spec.qmax).astype(np.float32))


def random_grid(spec: QuantSpec, shape: tuple[int, ...] = ()) -> tuple[Tensor, Tensor]:
    """A scale of any size and a zero point that the spec may have."""
    scale = torch.exp(torch.randn(shape) * 4)
    if spec.symmetric:
        return scale, torch.full(shape, spec.middle, dtype=torch.int32)
    return scale, torch.randint(spec.qmin, spec.qmax + 1, shape, dtype=torch.int32)


def adversarial(scale: float, spec: QuantSpec) -> Tensor:
    """Ties and their neighbours, both ends and beyond, zeros, subnormals, huge and infinite values."""
    ties = (torch.arange(spec.qmin - 300, spec.qmax + 300, dtype=torch.float64) + 0.5).mul(scale).float()
    special = [
        0.0,
        -0.0,
        1e-45,
        -1e-45,
        TINY,
        -TINY,
        1e-40,
        3e38,
        -3e38,
        float("inf"),
        -float("inf"),
        2.0**31,
        -(2.0**31),
    ]
    infinity = torch.tensor(float("inf"))
    return torch.cat([ties, ties.nextafter(infinity), ties.nextafter(-infinity), torch.tensor(special)])


@pytest.mark.parametrize("spec", SPECS)
def test_integers_equal_onnx_runtime(spec: QuantSpec) -> None:
    for round_ in range(5):
        scale, zero_point = random_grid(spec)
        spread = scale * spec.qmax * (0.2, 1.0, 3.0, 1000.0, 1e-3)[round_]
        x = torch.randn(4096) * spread
        x[17] = spread * 1e6  # a single hot outlier
        expect_integers_of_onnx_runtime(x, scale, zero_point, spec)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("scale", [1.0, 2.0**-7, 0.1, 1 / 3, 1e-30, TINY, 1e30], ids=lambda value: f"scale={value:.3g}")
def test_adversarial_values_equal_onnx_runtime(spec: QuantSpec, scale: float) -> None:
    zero_points = {spec.middle} if spec.symmetric else {spec.qmin, spec.qmin + 1, spec.qmax}
    x = adversarial(scale, spec)
    for zero_point in zero_points:
        expect_integers_of_onnx_runtime(x, torch.tensor(scale), torch.tensor(zero_point, dtype=torch.int32), spec)


def test_ties_go_to_the_even_integer() -> None:
    x = torch.tensor([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5])
    got = quantize(x, torch.tensor(1.0), torch.tensor(0), qmin=-128, qmax=127)
    assert got.tolist() == [-2, -2, 0, 0, 2, 2]


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("spec", SPECS[-5:] + SPECS[10:15])
def test_per_axis_integers_equal_onnx_runtime(spec: QuantSpec, axis: int) -> None:
    x = torch.randn(5, 6, 7)
    scale, zero_point = random_grid(spec, (x.shape[axis],))
    shape = [1, 1, 1]
    shape[axis] = -1
    x = x * scale.reshape(shape) * 100
    expect_integers_of_onnx_runtime(x, scale, zero_point, spec, axis)
    # The tensor in memory in another order: the same integers.
    expect_integers_of_onnx_runtime(x.permute(2, 0, 1).contiguous().permute(1, 2, 0), scale, zero_point, spec, axis)


def test_onnx_reference_agrees_on_all_that_is_representable() -> None:
    evaluator = ReferenceEvaluator(onnx_model(True, None))
    scale, zero_point = torch.tensor(0.0375), torch.tensor(3, dtype=torch.int32)
    x = torch.linspace(-6, 6, 2001)
    want_q, want_y = evaluator.run(None, onnx_feeds(x, scale, zero_point, True))
    got = quantize(x, scale, zero_point, qmin=-128, qmax=127)
    np.testing.assert_array_equal(got.numpy(), want_q.astype(np.float32))
    np.testing.assert_array_equal(dequantize(got, scale, zero_point).numpy(), want_y)


@pytest.mark.parametrize("signed", [True, False], ids=["int8", "uint8"])
@pytest.mark.parametrize("axis", [None, 1], ids=["per-tensor", "per-axis"])
def test_dequantize_equals_onnx_runtime_for_every_integer(signed: bool, axis: int | None) -> None:
    spec = QuantSpec(signed=signed, symmetric=False)
    integers = torch.arange(spec.qmin, spec.qmax + 1, dtype=torch.int8 if signed else torch.uint8).reshape(1, 1, -1)
    integers = integers.expand(2, 3, 256).contiguous()
    for _ in range(20):
        scale, zero_point = random_grid(spec, () if axis is None else (3,))
        feeds = onnx_feeds(integers, scale, zero_point, signed)
        (want,) = dequantize_session(signed, axis).run(
            ["y"], {"q": integers.numpy(), "scale": feeds["scale"], "zero_point": feeds["zero_point"]}
        )
        for q in (integers, integers.float(), integers.to(torch.int32)):
            got = dequantize(q, scale, zero_point, axis=axis)
            assert got.dtype == torch.float32
            np.testing.assert_array_equal(got.numpy(), want)


@cache
def dequantize_session(signed: bool, axis: int | None) -> ort.InferenceSession:
    kind = TensorProto.INT8 if signed else TensorProto.UINT8
    shape = [] if axis is None else ["channels"]
    node = helper.make_node(
        "DequantizeLinear", ["q", "scale", "zero_point"], ["y"], **({} if axis is None else {"axis": axis})
    )
    inputs = [
        helper.make_tensor_value_info("q", kind, ["a", "b", "c"]),
        helper.make_tensor_value_info("scale", TensorProto.FLOAT, shape),
        helper.make_tensor_value_info("zero_point", kind, shape),
    ]
    graph = helper.make_graph([node], "dq", inputs, [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("axis", [None, 0, 1, 2, -2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_fake_quantize_is_the_onnx_pair_in_the_type_of_its_input(dtype: torch.dtype, axis: int | None) -> None:
    spec = QuantSpec(symmetric=False)
    x = (torch.randn(4, 5, 6) * 3).to(dtype)
    scale, zero_point = random_grid(spec, () if axis is None else (x.shape[axis],))
    scale = scale.clamp(1e-3, 10)
    (want,) = onnx_session(True, axis).run(["y"], onnx_feeds(x, scale, zero_point, True))
    got = fake_quantize(x, scale, zero_point, qmin=spec.qmin, qmax=spec.qmax, axis=axis)
    assert got.dtype == dtype
    assert torch.equal(got, torch.from_numpy(want).to(dtype))
    again = fake_quantize(got.float(), scale, zero_point, qmin=spec.qmin, qmax=spec.qmax, axis=axis)
    if dtype == torch.float32:
        assert torch.equal(again, got), "a grid point stays where it is"


def test_fake_quantize_leaves_its_input_alone() -> None:
    x = torch.randn(100)
    before = x.clone()
    quantize(x, torch.tensor(0.1), torch.tensor(0), qmin=-8, qmax=7)
    fake_quantize(x, torch.tensor(0.1), torch.tensor(0), qmin=-8, qmax=7)
    assert torch.equal(x, before)


# --- gradients ---


@pytest.mark.parametrize("spec", SPECS)
def test_value_and_gradient_equal_torch_per_tensor(spec: QuantSpec) -> None:
    """With a power of two as scale torch's product with 1/scale is exact, and its fake quantize the same as ours."""
    scale, zero_point = torch.tensor(2.0**-5), random_grid(spec)[1]
    x = torch.cat([torch.randn(2000) * scale * spec.qmax, adversarial(float(scale), spec)])
    x = x[x.abs() < 1e6]
    upstream = torch.randn_like(x)
    results = []
    for function in (fake_quantize, torch.fake_quantize_per_tensor_affine):
        leaf = x.clone().requires_grad_()
        if function is fake_quantize:
            y = fake_quantize(leaf, scale, zero_point, qmin=spec.qmin, qmax=spec.qmax)
        else:
            y = torch.fake_quantize_per_tensor_affine(leaf, scale, zero_point, spec.qmin, spec.qmax)
        y.backward(upstream)
        results.append((y.detach(), leaf.grad))
    (got, got_gradient), (want, want_gradient) = results
    assert torch.equal(got, want)
    assert torch.equal(got_gradient, want_gradient)
    assert 0 < int((got_gradient == 0).sum()) < len(x), "the case has values inside and outside"


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_value_and_gradient_equal_torch_per_axis(axis: int) -> None:
    x = torch.randn(4, 8, 16) * 3
    scale = 2.0 ** -torch.randint(3, 7, (x.shape[axis],)).float()
    zero_point = torch.randint(-20, 20, (x.shape[axis],), dtype=torch.int32)
    upstream = torch.randn_like(x)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    got = fake_quantize(ours, scale, zero_point, qmin=-128, qmax=127, axis=axis)
    want = torch.fake_quantize_per_channel_affine(theirs, scale, zero_point, axis, -128, 127)
    got.backward(upstream)
    want.backward(upstream)
    assert torch.equal(got, want)
    assert ours.grad is not None
    assert torch.equal(ours.grad, theirs.grad)
    assert 0 < int((ours.grad == 0).sum()) < x.numel()


def plain_fake_quantize(x: Tensor, scale: Tensor, zero_point: Tensor, *, qmin: int, qmax: int) -> Tensor:
    """Out of torch's differentiable functions: the rounding is hidden from autograd, the clamp is not."""
    steps = x / scale
    rounded = steps + (steps.round() - steps).detach()
    return ((rounded + zero_point).clamp(qmin, qmax) - zero_point) * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("spec", SPECS[-5:])
def test_gradient_equals_plain_autograd(spec: QuantSpec, dtype: torch.dtype) -> None:
    scale, zero_point = torch.tensor(0.0421), random_grid(spec)[1]
    x = (torch.randn(3000) * 5).to(dtype)
    upstream = torch.randn(3000).to(dtype)
    leaf, reference = x.clone().requires_grad_(), x.float().requires_grad_()
    fake_quantize(leaf, scale, zero_point, qmin=spec.qmin, qmax=spec.qmax).backward(upstream)
    plain_fake_quantize(reference, scale, zero_point, qmin=spec.qmin, qmax=spec.qmax).backward(upstream.float())
    assert leaf.grad is not None
    assert leaf.grad.dtype == dtype
    assert reference.grad is not None
    torch.testing.assert_close(leaf.grad.float(), reference.grad, rtol=1e-5, atol=0)  # the reference: * scale / scale
    assert torch.equal(leaf.grad != 0, reference.grad != 0)


def test_no_gradient_for_what_is_not_a_number_or_infinite() -> None:
    x = torch.tensor([1.0, float("inf"), -float("inf"), float("nan")], requires_grad=True)
    fake_quantize(x, torch.tensor(0.1), torch.tensor(0), qmin=-128, qmax=127).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 0, 0, 0]


# --- the operator ---


def operator_arguments() -> list[Any]:
    def case(name: str, x: Tensor, axis: int | None, group: int | None = None, learned: bool = False) -> Any:
        shape = () if axis is None else (x.shape[axis],)
        if group is not None:
            shape = (*x.shape[:-1], -(-x.shape[-1] // group))
        scale, zero_point = torch.rand(shape) + 0.1, torch.zeros(shape, dtype=torch.int32)
        return pytest.param((x, scale.requires_grad_(learned), zero_point, -128, 127, axis, group), id=name)

    torch.manual_seed(0)
    return [
        case("per-tensor", torch.randn(3, 4, requires_grad=True), None),
        case("per-axis", torch.randn(3, 4, 5, requires_grad=True), 1),
        case("bfloat16", torch.randn(3, 4).bfloat16().requires_grad_(), None),
        case("transposed", torch.randn(3, 4, 5).transpose(0, 2), 1),
        case("heads", torch.randn(2, 3, 4, 5).transpose(1, 2), None),
        case("scalar", torch.randn(()), None),
        case("empty", torch.randn(0, 4), 1),
        case("per-group", torch.randn(3, 8, requires_grad=True), None, group=4),
        case("per-group-shorter-last", torch.randn(3, 7), None, group=3),
        case("learned", torch.randn(3, 4, requires_grad=True), None, learned=True),
        case("learned-per-axis", torch.randn(3, 4, requires_grad=True), 0, learned=True),
        case("learned-scale-of-a-constant", torch.randn(3, 4), 0, learned=True),
    ]


@pytest.mark.parametrize("arguments", operator_arguments())
def test_operator_is_registered_correctly(arguments: tuple[Any, ...]) -> None:
    """Schema, fake implementation (shapes, strides), autograd registration and tracing, as torch checks them."""
    result = torch.library.opcheck(torch.ops.qdq.fake_quantize.default, arguments)
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("arguments", operator_arguments())
def test_mask_of_the_gradient_is_registered_correctly(arguments: tuple[Any, ...]) -> None:
    plain = tuple(value.detach() if isinstance(value, Tensor) else value for value in arguments)
    result = torch.library.opcheck(torch.ops.qdq.is_inside.default, plain)
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("width", [8, 7, 3], ids=["whole", "shorter-last", "one"])
@pytest.mark.parametrize("affine", [False, True], ids=["symmetric", "affine"])
def test_groups_equal_onnx_reference(width: int, affine: bool) -> None:
    """ONNX's blocked quantization, since opset 21."""
    size, x = 4, torch.randn(5, width) * 3
    spec = QuantSpec(signed=not affine, symmetric=not affine, granularity=PerGroup(size))
    scale, zero_point = scale_and_zero_point(
        *value_range(x, spec), qmin=spec.qmin, qmax=spec.qmax, symmetric=spec.symmetric
    )
    assert scale.shape == spec.scale_shape(x.shape) == (5, -(-width // size))
    padded = torch.nn.functional.pad(x, (0, -width % size))  # the reference evaluator takes whole blocks only
    kind = TensorProto.UINT8 if affine else TensorProto.INT8
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], axis=1, block_size=size),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], axis=1, block_size=size),
    ]
    graph = helper.make_graph(
        nodes,
        "groups",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, [5, None]),
            helper.make_tensor_value_info("s", TensorProto.FLOAT, [5, None]),
            helper.make_tensor_value_info("z", kind, [5, None]),
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [5, None])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    zero = zero_point.numpy().astype(np.uint8 if affine else np.int8)
    (want,) = ReferenceEvaluator(model).run(None, {"x": padded.numpy(), "s": scale.numpy(), "z": zero})
    got = fake_quantize(x, scale, zero_point, qmin=spec.qmin, qmax=spec.qmax, group=size)
    np.testing.assert_array_equal(got.numpy(), want[:, :width])


def _low(x: np.ndarray) -> np.ndarray:
    return np.minimum(x.min(-1), 0) if x.shape[-1] < 3 else x.min(-1)


def _high(x: np.ndarray) -> np.ndarray:
    return np.maximum(x.max(-1), 0) if x.shape[-1] < 3 else x.max(-1)


@pytest.mark.parametrize(
    ("granularity", "want"),
    [
        (PerTensor(), lambda x: (x.min(), x.max())),
        (PerAxis(0), lambda x: (x.min(axis=(1, 2)), x.max(axis=(1, 2)))),
        (PerAxis(-1), lambda x: (x.min(axis=(0, 1)), x.max(axis=(0, 1)))),
        (PerToken(), lambda x: (x.min(axis=2, keepdims=True), x.max(axis=2, keepdims=True))),
        (PerGroup(4), lambda x: tuple(np.stack([f(x[..., :4]), f(x[..., 4:])], -1) for f in (_low, _high))),
    ],
    ids=lambda value: "" if callable(value) else str(value),
)
def test_value_range_equals_numpy(granularity: Any, want: Any) -> None:
    spec = QuantSpec(granularity=granularity, dynamic=isinstance(granularity, PerToken))
    x = torch.randn(2, 4, 6, requires_grad=True)
    found = value_range(x, spec)
    for part, expected in zip(found, want(x.detach().numpy()), strict=False):
        np.testing.assert_array_equal(part.numpy(), expected)
        assert part.shape == spec.scale_shape(x.shape)
        assert not part.requires_grad


def lsq_in_plain_torch(x: Tensor, scale: Tensor, qmin: int, qmax: int, factor: float) -> Tensor:
    """The paper's algorithm 1: rounding and the scale's gradient passed straight through by detaching."""
    scale = scale * factor + (scale - scale * factor).detach()
    steps = (x / scale).clamp(qmin, qmax)
    return (steps + (steps.round() - steps).detach()) * scale


@pytest.mark.parametrize("axis", [None, 0], ids=["per-tensor", "per-row"])
def test_learned_scale_has_the_gradient_of_the_paper(axis: int | None) -> None:
    x, upstream = torch.randn(6, 50), torch.randn(6, 50)
    scale = torch.full(() if axis is None else (6,), 0.02)  # narrow: about one value in ten saturates
    count = x.numel() // scale.numel()
    ours, theirs = scale.clone().requires_grad_(), scale.clone().requires_grad_()
    x_ours, x_theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    zero = torch.zeros(scale.shape, dtype=torch.int32)
    counted = scale_gradient(ours, count=count, qmax=127)
    fake_quantize(x_ours, counted, zero, qmin=-128, qmax=127, axis=axis).backward(upstream)
    column = theirs if axis is None else theirs[:, None]
    lsq_in_plain_torch(x_theirs, column, -128, 127, (count * 127) ** -0.5).backward(upstream)
    assert ours.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(x_ours.grad, x_theirs.grad)


class TwoGrids(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        scale, zero_point = torch.tensor(0.1), torch.tensor(0, dtype=torch.int32)
        y = fake_quantize(x, scale, zero_point, qmin=-128, qmax=127)
        return fake_quantize(y * 2, scale, zero_point, qmin=0, qmax=255)


def test_export_has_one_node_for_each_call() -> None:
    x = torch.randn(2, 5)
    program = torch.export.export(TwoGrids(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert targets.count(torch.ops.qdq.fake_quantize.default) == 2
    assert not any("round" in str(target) or "clamp" in str(target) for target in targets)
    more = torch.randn(7, 5)
    assert torch.equal(program.module()(more), TwoGrids()(more))


def test_compiled_without_a_graph_break() -> None:
    compiled = torch.compile(TwoGrids(), backend="aot_eager", fullgraph=True)
    ours, theirs = torch.randn(3, 5, requires_grad=True), None
    theirs = ours.detach().clone().requires_grad_()
    got, want = compiled(ours), TwoGrids()(theirs)
    assert torch.equal(got, want)
    got.sum().backward()
    want.sum().backward()
    assert ours.grad is not None
    assert torch.equal(ours.grad, theirs.grad)


@pytest.mark.slow
def test_compiled_by_inductor() -> None:
    compiled = torch.compile(TwoGrids(), fullgraph=True)
    x = torch.randn(3, 5)
    assert torch.equal(compiled(x), TwoGrids()(x))


# --- ranges to grids ---


def random_ranges(count: int = 4000) -> tuple[Tensor, Tensor]:
    """Ranges of every size and position: about zero, on one side of it, lopsided, of width zero."""
    sizes = torch.exp(torch.empty(count).uniform_(-60, 60))
    lower, upper = (torch.randn(count) * sizes).sort().values, torch.randn(count) * sizes
    lower, upper = torch.minimum(lower, upper), torch.maximum(lower, upper)
    lower[::7] = 0
    upper[::11] = lower[::11]
    lower, upper = torch.minimum(lower, upper), torch.maximum(lower, upper)
    upper[::13] = torch.maximum(lower[::13], torch.tensor(0.0))
    return lower, upper


@pytest.mark.parametrize("spec", SPECS)
def test_grid_covers_the_range_and_holds_zero(spec: QuantSpec) -> None:
    lower, upper = random_ranges()
    scale, zero_point = scale_and_zero_point(lower, upper, qmin=spec.qmin, qmax=spec.qmax, symmetric=spec.symmetric)
    assert scale.dtype == torch.float32
    assert zero_point.dtype == torch.int32
    assert bool((torch.isfinite(scale) & (scale >= TINY)).all())
    assert bool(((zero_point >= spec.qmin) & (zero_point <= spec.qmax)).all())
    zero = fake_quantize(torch.zeros_like(scale), scale, zero_point, qmin=spec.qmin, qmax=spec.qmax, axis=0)
    assert torch.equal(zero, torch.zeros_like(zero))
    # Rounding moves an end by half a step; the zero point of an affine grid is rounded as well.
    reach = (0.5 if spec.symmetric else 1.0) * 1.0001
    for end in (lower, upper):
        got = fake_quantize(end, scale, zero_point, qmin=spec.qmin, qmax=spec.qmax, axis=0)
        wide = (upper.clamp(min=0) - lower.clamp(max=0)) > 512 * TINY
        assert bool(((got - end).abs() <= reach * scale)[wide].all())


@pytest.mark.parametrize("spec", SPECS)
def test_scale_is_no_larger_than_it_must_be(spec: QuantSpec) -> None:
    lower, upper = random_ranges()
    scale, zero_point = scale_and_zero_point(lower, upper, qmin=spec.qmin, qmax=spec.qmax, symmetric=spec.symmetric)
    low, high = lower.double().numpy(), upper.double().numpy()
    if spec.symmetric:
        want = np.maximum(abs(low), abs(high)) / (spec.qmax - spec.middle)
    else:
        want = (np.maximum(high, 0) - np.minimum(low, 0)) / (spec.qmax - spec.qmin)
    used = want >= 2 * TINY
    np.testing.assert_allclose(scale.double().numpy()[used], want[used], rtol=3e-7)
    if spec.symmetric:
        assert bool((zero_point == spec.middle).all())


@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_unsigned_is_the_signed_grid_shifted(bits: int) -> None:
    signed, unsigned = QuantSpec(bits=bits), QuantSpec(bits=bits, signed=False)
    x = torch.randn(5000)
    grids = []
    for spec in (signed, unsigned):
        scale, zero_point = scale_and_zero_point(x.min(), x.max(), qmin=spec.qmin, qmax=spec.qmax, symmetric=True)
        grids.append((scale, quantize(x, scale, zero_point, qmin=spec.qmin, qmax=spec.qmax)))
    assert torch.equal(grids[0][0], grids[1][0])
    assert torch.equal(grids[0][1] + 2 ** (bits - 1), grids[1][1])


def test_affine_grid_equals_torch_observer() -> None:
    from torch.ao.quantization.observer import MinMaxObserver

    for _ in range(200):
        x = torch.randn(50) * torch.rand(()) * 10 + torch.randn(()) * 3
        observer = MinMaxObserver(dtype=torch.quint8, qscheme=torch.per_tensor_affine, eps=1e-30)
        observer(x)
        want_scale, want_zero_point = observer.calculate_qparams()
        scale, zero_point = scale_and_zero_point(x.min(), x.max(), qmin=0, qmax=255, symmetric=False)
        assert torch.equal(scale, want_scale[0])
        assert int(zero_point) == int(want_zero_point)


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
@pytest.mark.parametrize("width", [0.0, 1e-45, 1e-40, TINY])
def test_tiny_ranges_give_a_scale_that_divides(width: float, symmetric: bool) -> None:
    scale, zero_point = scale_and_zero_point(
        torch.tensor(-width), torch.tensor(width), qmin=-128, qmax=127, symmetric=symmetric
    )
    assert (float(scale), int(zero_point)) == (1.0, 0)
    assert float(fake_quantize(torch.tensor(width), scale, zero_point, qmin=-128, qmax=127)) == 0


def test_range_wider_than_float32_still_has_a_grid() -> None:
    scale, zero_point = scale_and_zero_point(torch.tensor(-3e38), torch.tensor(3e38), qmin=0, qmax=255, symmetric=False)
    assert float(scale) == pytest.approx(6e38 / 255, rel=1e-6)
    assert int(zero_point) == 128


@pytest.mark.parametrize("symmetric", [True, False], ids=["symmetric", "affine"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_broken_range_gives_no_scale(bad: float, symmetric: bool) -> None:
    scale, _ = scale_and_zero_point(
        torch.tensor([-1.0, -1.0]), torch.tensor([1.0, bad]), qmin=-128, qmax=127, symmetric=symmetric
    )
    assert torch.isfinite(scale).tolist() == [True, False]
