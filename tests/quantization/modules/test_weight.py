"""Scales of weights, and that overflow_safe keeps 16-bit pair sums exact."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import onnxruntime as ort
import pytest
import torch
from onnx import TensorProto, helper
from safetensors.torch import load_file
from torch import Tensor

from qdq.errors import CalibrationError
from qdq.quantization.modules.weight import set_weight_scale, weight_range
from qdq.quantization.quantizer import Quantizer
from qdq.quantization.spec import PerAxis, QuantSpec

if TYPE_CHECKING:
    from pathlib import Path

ROWS = QuantSpec(granularity=PerAxis(0))
SAFE = QuantSpec(granularity=PerAxis(0), overflow_safe=True)


def integers(weight: Tensor, spec: QuantSpec) -> np.ndarray:
    quantizer = Quantizer(spec, shape=spec.scale_shape(weight.shape))
    set_weight_scale(quantizer, weight)
    return quantizer.quantize(weight).numpy().astype(np.int8)


def pair_sums(q: np.ndarray, offset: int) -> tuple[np.ndarray, np.ndarray]:
    """The largest sums of two products that uint8 activations can make with neighbouring weights, of either sign."""
    q = q.astype(np.int32)[:, offset:]
    q = q[:, : q.shape[1] // 2 * 2].reshape(len(q), -1, 2)
    return 255 * q.clip(min=0).sum(axis=-1), 255 * q.clip(max=0).sum(axis=-1)


def saturates(q: np.ndarray) -> bool:
    """Whether vpmaddubsw (u8 * s8 + u8 * s8, saturated to int16) can be wrong, wherever pairs begin."""
    extremes = np.concatenate([sums.ravel() for offset in (0, 1) for sums in pair_sums(q, offset)])
    return bool((extremes != extremes.clip(-(2**15), 2**15 - 1)).any())


def hard_weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    random = torch.randn(64, 33, generator=generator)
    equal = torch.full((4, 8), 0.3)
    signs = torch.tensor([1.0, -1.0]).repeat(4).expand(3, 8) * 0.7
    outlier = random.clone()
    outlier[:, 7] = 40.0
    two = random.clone()
    two[:, 7:9] = -40.0
    # 63.5 steps each: both round to 64.
    ties = torch.zeros(2, 6)
    ties[:, 1:3] = 63.5
    near = torch.cat([ties.nextafter(torch.tensor(99.0)), ties * (1 + 1e-6), ties * 0.1, ties / 3])
    heavy = torch.distributions.StudentT(2.0).sample((200, 64))
    return [
        random,
        equal,
        -equal,
        signs,
        outlier,
        two,
        ties,
        near,
        heavy,
        heavy * 1e-20,
        torch.zeros(3, 4),
        random[:, :1],
    ]


@pytest.mark.parametrize("index", range(len(hard_weights())))
def test_overflow_safe_never_saturates(index: int) -> None:
    torch.manual_seed(index)
    assert not saturates(integers(hard_weights()[index], SAFE))


def test_without_it_pairs_do_saturate() -> None:
    assert saturates(integers(torch.full((4, 8), 0.3), ROWS))
    assert saturates(integers(hard_weights()[5], ROWS))


def test_the_simulation_knows_the_limit() -> None:
    assert not saturates(np.array([[64, 64]], np.int8))
    assert saturates(np.array([[64, 65]], np.int8))
    assert saturates(np.array([[0, -64, -65]], np.int8)), "pairs that begin at odd places count too"
    assert not saturates(np.array([[127, -127, 127]], np.int8))


def test_integer_product_of_onnx_runtime_is_exact_on_this_cpu() -> None:
    """Whatever instructions ONNX Runtime chooses here, with the largest activations that there are."""
    weight = hard_weights()[4]
    weight[:, 8] = 39.0
    q = integers(weight, SAFE)
    a = np.full((3, q.shape[1]), 255, np.uint8)
    a[1, ::2] = 0
    a[2, ::3] = 1
    node = helper.make_node("MatMulInteger", ["a", "b"], ["y"])
    graph = helper.make_graph(
        [node],
        "product",
        [helper.make_tensor_value_info("a", TensorProto.UINT8, list(a.shape))],
        [helper.make_tensor_value_info("y", TensorProto.INT32, None)],
        [helper.make_tensor("b", TensorProto.INT8, q.T.shape, np.ascontiguousarray(q.T).tobytes(), raw=True)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {"a": a})
    np.testing.assert_array_equal(got, a.astype(np.int32) @ q.T.astype(np.int32))


def test_overflow_safe_costs_little_on_real_weights(minilm_dir: Path) -> None:
    tensors = load_file(minilm_dir / "model.safetensors")
    lost = []
    for name, weight in tensors.items():
        if ".layer." in name and weight.dim() == 2:
            plain, safe = (weight_range(weight, spec).amax for spec in (ROWS, SAFE))
            assert bool((safe >= plain).all())
            lost.append(torch.log2(safe / plain))
            assert not saturates(integers(weight, SAFE)), name
    assert len(lost) == 36, "six layers of six linears"
    assert float(torch.cat(lost).mean()) < 0.5, "bits on average"
    assert float(torch.cat(lost).max()) <= 1, "never more than 7-bit weights"


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("shape", [(5, 7), (4, 1), (1, 1)], ids=str)
def test_amax_equals_numpy(shape: tuple[int, int], axis: int | None) -> None:
    weight = torch.randn(shape)
    want = np.abs(weight.numpy()).max(axis=None if axis is None else 1 - axis % 2)
    spec = QuantSpec() if axis is None else QuantSpec(granularity=PerAxis(axis))
    np.testing.assert_array_equal(weight_range(weight, spec).amax.numpy(), want)


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_affine_weight_covers_its_extremes(axis: int | None) -> None:
    granularity = {} if axis is None else {"granularity": PerAxis(axis)}
    spec = QuantSpec(symmetric=False, **granularity)
    weight = torch.rand(6, 9) + torch.linspace(-3, 1, 6)[:, None]
    quantizer = Quantizer(spec, shape=spec.scale_shape(weight.shape))
    set_weight_scale(quantizer, weight)
    numbers = weight.double().numpy()
    others = None if axis is None else 1 - axis % 2
    width = np.maximum(numbers.max(axis=others), 0) - np.minimum(numbers.min(axis=others), 0)
    np.testing.assert_allclose(quantizer.scale.numpy(), width / 255, rtol=1e-6)


def test_half_precision_weights_are_measured_in_float32() -> None:
    weight = torch.full((2, 4), 40000.0, dtype=torch.float16)
    amax = weight_range(weight, SAFE).amax
    assert amax.dtype == torch.float32
    assert amax.tolist() == [80000.0, 80000.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("spec", [QuantSpec(), ROWS, SAFE, QuantSpec(symmetric=False)], ids=str)
def test_weights_that_are_not_finite_are_refused(spec: QuantSpec, bad: float) -> None:
    weight = torch.randn(3, 4)
    weight[1, 2] = bad
    with pytest.raises(CalibrationError, match="NaN or infinite weights"):
        set_weight_scale(Quantizer(spec, shape=() if spec.axis is None else (3,)), weight)


def test_slot_that_stays_float_needs_no_scale() -> None:
    quantizer = Quantizer()
    set_weight_scale(quantizer, torch.full((2, 2), float("nan")))
    assert quantizer.range is None
