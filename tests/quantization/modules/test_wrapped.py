"""Wrapped modules: the float module with quantizers off, torch's own fake quantize with them on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from qdq.models.ops import Add, MatMul
from qdq.quantization.modules import WRAPPED, QuantAdd, QuantEmbedding, QuantLinear, QuantMatMul
from qdq.quantization.modules.wrapped import Wrapped
from qdq.quantization.quantizer import Mode, Quantizer
from qdq.quantization.spec import PerAxis, QuantSpec
from qdq.quantization.wrap import wrap

STEP = 2.0**-5  # a power of two, with which torch's fake quantize divides exactly
INT8 = QuantSpec()


def linear(bias: bool = True) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return nn.Linear(6, 4, bias=bias), (torch.randn(2, 3, 6),)


def embedding(**options: Any) -> tuple[nn.Module, tuple[Tensor, ...]]:
    return nn.Embedding(11, 4, **options), (torch.randint(0, 11, (2, 5)),)


def matmul(transpose_other: bool) -> tuple[nn.Module, tuple[Tensor, ...]]:
    other = torch.randn(2, 3, 5, 4)
    return MatMul(transpose_other), (torch.randn(2, 3, 6, 4), other if transpose_other else other.transpose(-1, -2))


CASES = [
    pytest.param(linear, QuantLinear, id="linear"),
    pytest.param(lambda: linear(bias=False), QuantLinear, id="linear-without-bias"),
    pytest.param(embedding, QuantEmbedding, id="embedding"),
    pytest.param(lambda: embedding(padding_idx=3), QuantEmbedding, id="embedding-with-padding"),
    pytest.param(lambda: embedding(max_norm=1.0, scale_grad_by_freq=True), QuantEmbedding, id="embedding-with-norm"),
    pytest.param(lambda: matmul(False), QuantMatMul, id="matmul"),
    pytest.param(lambda: matmul(True), QuantMatMul, id="matmul-transposed"),
    pytest.param(lambda: (Add(), (torch.randn(2, 3, 4), torch.randn(2, 3, 4))), QuantAdd, id="add"),
]
Make = "Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]"


def switch_on(module: nn.Module, specs: dict[str, QuantSpec]) -> None:
    for slot, spec in specs.items():
        quantizer: Quantizer = getattr(module, f"{slot}_quantizer")
        quantizer.configure(spec, shape=spec.scale_shape(module.weight.shape) if slot == "weight" else ())
        quantizer.set_scale(torch.full_like(quantizer.scale, STEP), torch.zeros_like(quantizer.zero_point))
        quantizer.mode = Mode.QUANTIZE


def rounded(x: Tensor) -> Tensor:
    return torch.fake_quantize_per_tensor_affine(x, STEP, 0, -128, 127)


@pytest.mark.parametrize(("make", "kind"), CASES)
def test_off_is_the_float_module_bit_for_bit(make: Make, kind: type[Wrapped]) -> None:
    module, inputs = make()
    wrapped = WRAPPED[type(module)].from_float(module)
    assert type(wrapped) is kind
    assert isinstance(wrapped, Wrapped)
    assert isinstance(wrapped, type(module)), "what asks for an nn.Linear still finds one"
    assert torch.equal(wrapped(*inputs), module(*inputs))


@pytest.mark.parametrize(("make", "kind"), CASES)
def test_parameters_are_the_same_objects(make: Make, kind: type[Wrapped]) -> None:
    module, _ = make()
    wrapped = WRAPPED[type(module)].from_float(module)
    assert dict(wrapped.named_parameters()).keys() == dict(module.named_parameters()).keys()
    for name, parameter in module.named_parameters():
        assert wrapped.get_parameter(name) is parameter
    assert list(wrapped.state_dict()) == list(module.state_dict()), "empty slots add nothing"


@pytest.mark.parametrize(("make", "kind"), CASES)
def test_training_flag_is_taken_over(make: Make, kind: type[Wrapped]) -> None:
    for training in (True, False):
        module = make()[0].train(training)
        wrapped = WRAPPED[type(module)].from_float(module)
        assert {child.training for child in wrapped.modules()} == {training}


@pytest.mark.parametrize(("make", "kind"), CASES)
def test_slots_are_attributes_and_children(make: Make, kind: type[Wrapped]) -> None:
    module, _ = make()
    wrapped = WRAPPED[type(module)].from_float(module)
    assert [name for name, _ in wrapped.named_children()] == [f"{slot}_quantizer" for slot in kind.slots]


def test_linear_rounds_its_input_and_its_weight() -> None:
    module, (x,) = linear()
    wrapped = QuantLinear.from_float(module)
    switch_on(wrapped, {"input": INT8, "weight": QuantSpec(granularity=PerAxis(0))})
    assert torch.equal(wrapped(x), F.linear(rounded(x), rounded(module.weight), module.bias))


def test_embedding_rounds_its_table() -> None:
    module, (ids,) = embedding()
    wrapped = QuantEmbedding.from_float(module)
    switch_on(wrapped, {"weight": QuantSpec(granularity=PerAxis(0))})
    assert torch.equal(wrapped(ids), F.embedding(ids, rounded(module.weight)))


@pytest.mark.parametrize("transpose_other", [False, True], ids=["plain", "transposed"])
def test_matmul_rounds_both_operands(transpose_other: bool) -> None:
    module, (a, b) = matmul(transpose_other)
    wrapped = QuantMatMul.from_float(module)
    switch_on(wrapped, {"input": INT8, "other": INT8})
    assert torch.equal(wrapped(a, b), rounded(a) @ (rounded(b).mT if transpose_other else rounded(b)))


def test_add_rounds_the_operands_it_is_told_to() -> None:
    branch, residual = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    wrapped = QuantAdd.from_float(Add())
    switch_on(wrapped, {"other": INT8})
    assert torch.equal(wrapped(branch, residual), branch + rounded(residual))
    switch_on(wrapped, {"input": INT8})
    assert torch.equal(wrapped(branch, residual), rounded(branch) + rounded(residual))


def test_gradient_reaches_the_float_weight() -> None:
    module, (x,) = linear()
    wrapped = QuantLinear.from_float(module)
    switch_on(wrapped, {"input": INT8, "weight": INT8})
    wrapped(x).square().sum().backward()
    got = module.weight.grad
    module.weight.grad = None
    F.linear(rounded(x), rounded(module.weight), module.bias).square().sum().backward()
    assert got is not None
    assert torch.equal(got, module.weight.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_types_stay_what_they_are(dtype: torch.dtype) -> None:
    module, (x,) = linear()
    wrapped = QuantLinear.from_float(module)
    switch_on(wrapped, {"input": INT8, "weight": INT8})
    wrapped.to(dtype)
    x = x.to(dtype)
    got = wrapped(x)
    assert got.dtype == dtype
    assert wrapped.input_quantizer.scale.dtype == torch.float32
    want = F.linear(rounded(x.float()).to(dtype), rounded(module.weight.float()).to(dtype), module.bias)
    assert torch.equal(got, want)


class TransposedLinear(nn.Linear):
    """A subclass that computes something else."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return input @ self.weight


def test_look_up_is_by_exact_type() -> None:
    model = nn.ModuleDict(
        {"own": TransposedLinear(3, 3), "plain": nn.Linear(3, 3), "bag": nn.EmbeddingBag(3, 3), "add": Add()}
    )
    own = model["own"]
    replaced = wrap(model)
    assert sorted(replaced) == ["add", "plain"]
    assert model["own"] is own
    assert type(model["plain"]) is QuantLinear
    wrapped = model["plain"]
    assert wrap(model) == {}
    assert model["plain"] is wrapped


def test_module_under_two_names_keeps_its_parameters_together() -> None:
    shared = nn.Linear(3, 3)
    model = nn.ModuleDict({"a": shared, "b": shared, "c": nn.Sequential(shared)})
    wrap(model)
    assert {type(model["a"]), type(model["b"]), type(model["c"][0])} == {QuantLinear}
    assert len(list(model.parameters())) == 2
