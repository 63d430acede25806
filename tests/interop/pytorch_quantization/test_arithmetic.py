"""The same numbers as pytorch-quantization's own quantizer, on inputs made to tell two implementations apart."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qdq.quantization.operators import fake_quantize_by_amax
from qdq.quantization.quantizer import Mode, Quantizer, Range
from qdq.quantization.spec import PerAxis, PerTensor, QuantSpec

toolkit = pytest.importorskip("pytorch_quantization.nn", reason="pip install 'qdq[pytorch-quantization]'")
from pytorch_quantization.tensor_quant import QuantDescriptor, fake_tensor_quant  # noqa: E402 - behind the skip

DEAD = 2.0**-24  # a range that the toolkit takes for zero
NUMBERS = {
    "int8": {},
    "int8-narrow": {"narrow_range": True},
    "uint8": {"signed": False},
    "int4": {"bits": 4},
    "int4-narrow": {"bits": 4, "narrow_range": True},
    "uint4": {"bits": 4, "signed": False},
    "int2": {"bits": 2},
}
AXES = {"tensor": PerTensor(), "row": PerAxis(0), "column": PerAxis(1)}


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def spoiled(value: float) -> Tensor:
    """Ordinary numbers with one that is not."""
    x = draw(6, 40)
    x[2, 3] = value
    return x


# (rows, columns); the calibrated range of each is chosen beside it, None: the largest magnitude
INPUTS: dict[str, tuple[Tensor, float | None]] = {
    **{f"normal-{seed}": (draw(6, 40, seed=seed) * 10.0 ** (seed - 2), None) for seed in range(5)},
    "calibrated-too-small": (draw(6, 40), 0.7),
    "calibrated-too-large": (draw(6, 40), 300.0),
    # 127 / amax is a power of two: these are ties to the bit, the last ones beyond the range
    "ties": ((torch.arange(-140, 140).reshape(7, 40) + 0.5) / 64, 127 / 64),
    # ... and these lie beside ties by one or two ulps
    "near-ties": ((torch.arange(-140, 140).reshape(7, 40) + 0.5) * (2.7 / 127), 2.7),
    "steps": (torch.arange(-140, 140).reshape(7, 40) * (1.3 / 127), 1.3),
    "bounds": (torch.tensor([[1.1, -1.1], [1.1000001, -1.1000001], [1.0999999, -1.0999999]]).repeat(2, 20), 1.1),
    "zeros": (torch.zeros(6, 40), None),
    "zeros-calibrated": (torch.zeros(6, 40), 1.0),
    "a-row-of-zeros": (draw(6, 40) * torch.tensor([[1.0], [0.0], [1.0], [1.0], [0.0], [1.0]]), None),
    "dead": (draw(6, 40) * 1e-9, None),
    "dead-by-a-hair": (draw(6, 40) * 1e-7, DEAD),
    "alive-by-a-hair": (draw(6, 40) * 1e-7, DEAD * (1 + 2**-23)),
    "subnormal": (draw(6, 40) * 1e-40, None),
    "subnormal-calibrated": (draw(6, 40) * 1e-40, 1.0),
    "one-hot": (spoiled(1e4), None),
    "one-hot-calibrated": (spoiled(1e30), 3.0),
    "largest": (spoiled(torch.finfo(torch.float32).max), None),
    "infinite": (spoiled(torch.inf), 3.0),
    "infinite-calibrated-away": (spoiled(-torch.inf), 0.0),
    "nan": (spoiled(torch.nan), 3.0),
}


def ranges(x: Tensor, amax: float | None, granularity: PerTensor | PerAxis) -> Tensor:
    """Of shape () or, in the toolkit's manner, with every other axis kept as 1."""
    if amax is not None:
        found = torch.tensor(amax)
        if isinstance(granularity, PerAxis):
            shape = [-1 if axis == granularity.axis else 1 for axis in range(x.dim())]
            return found.repeat(x.shape[granularity.axis]).reshape(shape)
        return found
    return x.abs().amax(1 - granularity.axis, keepdim=True) if isinstance(granularity, PerAxis) else x.abs().max()


def theirs(spec: QuantSpec, amax: Tensor | None) -> nn.Module:
    descriptor = QuantDescriptor(
        num_bits=spec.bits, axis=spec.axis, unsigned=not spec.signed, narrow_range=spec.narrow_range
    )
    quantizer = toolkit.TensorQuantizer(descriptor)
    if amax is not None:
        quantizer.register_buffer("_amax", amax)
    return quantizer


def ours(spec: QuantSpec, amax: Tensor | None) -> Quantizer:
    quantizer = Quantizer(spec, shape=() if amax is None or spec.axis is None else (amax.numel(),))
    if amax is not None:
        value = amax.flatten() if spec.axis is not None else amax
        quantizer.set_range(Range(-value, value, value))
    quantizer.mode = Mode.QUANTIZE
    return quantizer


def forward_and_gradient(quantizer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().clone().requires_grad_()
    y = quantizer(x)
    slope = draw(*x.shape, seed=9).to(y.dtype)
    (gradient,) = torch.autograd.grad(y, x, slope)
    return y.detach(), gradient


def assert_same_bits(got: Tensor, want: Tensor) -> None:
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


KINDS = [
    *(pytest.param(numbers, torch.float32, id=f"{name}-float32") for name, numbers in NUMBERS.items()),
    *(
        pytest.param(NUMBERS[name], dtype, id=f"{name}-{str(dtype)[6:]}")
        for name in ("int8", "uint8", "int4-narrow")
        for dtype in (torch.float16, torch.bfloat16)
    ),
]


@pytest.mark.parametrize(("numbers", "dtype"), KINDS)
@pytest.mark.parametrize("granularity", AXES.values(), ids=AXES)
@pytest.mark.parametrize("dynamic", [False, True], ids=["calibrated", "dynamic"])
def test_default_path_to_the_bit(
    dynamic: bool, numbers: dict[str, Any], granularity: PerTensor | PerAxis, dtype: torch.dtype
) -> None:
    spec = QuantSpec(arithmetic="pytorch-quantization", granularity=granularity, dynamic=dynamic, **numbers)
    for name, (x, amax) in INPUTS.items():
        x = (x if spec.signed else x.abs()).to(dtype)  # noqa: PLW2901
        found = ranges(x.float(), amax, granularity)
        if not bool(found.isfinite().all()) and not (dynamic and bool(x.isinf().any())):
            continue  # nothing that calibration could have found
        found = None if dynamic else found
        if found is not None and dtype is torch.bfloat16 and granularity != PerTensor():
            # Such ranges make the toolkit's result float32, whatever went in; ours has the type of its input.
            y, gradient = forward_and_gradient(theirs(spec, found), x)
            assert y.dtype == torch.float32
            want = (y.to(dtype), gradient)
        else:
            want = forward_and_gradient(theirs(spec, found), x)
        got = forward_and_gradient(ours(spec, found), x)
        for mine, other in zip(got, want, strict=True):
            torch.testing.assert_close(
                *(mine, other), rtol=0, atol=0, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
            )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=lambda d: str(d)[6:])
@pytest.mark.parametrize("axis", [None, 0], ids=["tensor", "row"])
def test_ranges_of_the_type_of_the_tensor(axis: int | None, dtype: torch.dtype) -> None:
    """As in a model whose buffers were converted with its weights."""
    for x, amax in INPUTS.values():
        x = x.to(dtype)  # noqa: PLW2901
        found = ranges(x.nan_to_num(), amax, PerTensor() if axis is None else PerAxis(0)).to(dtype)
        got = fake_quantize_by_amax(x, found if axis is None else found.flatten(), qmin=-128, qmax=127, axis=axis)
        want = fake_tensor_quant(x, found, 8, False, False)
        assert_same_bits(got, want)


def test_negative_values_saturate_where_the_toolkit_refuses_them() -> None:
    spec = QuantSpec(arithmetic="pytorch-quantization", signed=False)
    amax = torch.tensor(1.0)
    with pytest.raises(TypeError, match="Negative values"):
        theirs(spec, amax)(torch.tensor([-0.5, 0.5]))
    assert ours(spec, amax)(torch.tensor([-0.5, 0.5])).tolist() == [0.0, pytest.approx(0.5, abs=1 / 255)]


# ---------------------------------------------------------------------------------------------------------------------
# ONNX's arithmetic: the same to a rounding error of the scale, and where an integer differs it is a tie.


def ties_only(got: Tensor, want: Tensor, x: Tensor, scale: Tensor) -> int:
    """How many integers differ; each differs by one, and x is a tie as far as float32 can tell."""
    apart = (got - want).abs() > scale / 2
    assert bool(((got - want).abs() <= scale * (1 + 1e-5))[apart].all())
    steps = (x.double() / scale.double())[apart]
    assert bool(((steps - steps.floor() - 0.5).abs() <= steps.abs() * 2.0**-22).all())
    torch.testing.assert_close(got[~apart], want[~apart], rtol=4 * 2.0**-24, atol=0, equal_nan=True)
    return int(apart.sum())


@pytest.mark.parametrize("native", [False, True], ids=["default", "use_fb_fake_quant"])
@pytest.mark.parametrize("granularity", AXES.values(), ids=AXES)
@pytest.mark.parametrize("numbers", [NUMBERS["int8"], NUMBERS["uint8"], NUMBERS["int4"]], ids=["int8", "uint8", "int4"])
def test_both_paths_up_to_ties(
    numbers: dict[str, Any],
    granularity: PerTensor | PerAxis,
    native: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(toolkit.TensorQuantizer, "use_fb_fake_quant", native)
    exact = QuantSpec(arithmetic="pytorch-quantization", granularity=granularity, **numbers)
    # affine, so that unsigned integers begin at a zero point of 0 as the toolkit's do
    spec = QuantSpec(granularity=granularity, symmetric=exact.signed, **numbers)
    flipped = compared = 0
    for x, amax in INPUTS.values():
        x = x if spec.signed else x.abs()  # noqa: PLW2901
        found = ranges(x, amax, granularity)
        # What the toolkit takes for zero, what a product with the scale takes beyond float32, and what the native
        # kernel casts to an integer that it cannot be.
        if bool((found <= DEAD).any() | (found > 1e38).any()) or (native and not bool((x.abs() < 1e9).all())):
            continue
        quantizer = Quantizer(spec, shape=() if spec.axis is None else (found.numel(),))
        value = found if spec.axis is None else found.flatten()
        quantizer.set_range(Range(-value if spec.signed else torch.zeros_like(value), value, value))
        quantizer.mode = Mode.QUANTIZE
        flipped += ties_only(quantizer(x), theirs(exact, found)(x), x, (found / spec.qmax).expand_as(x))
        compared += x.numel()
    assert compared > 2000
    assert flipped < compared / 20


def test_an_integer_that_differs_without_a_tie_would_be_found() -> None:
    x, scale = torch.tensor([0.26]), torch.tensor([0.5])
    with pytest.raises(AssertionError):
        ties_only(torch.tensor([0.5]), torch.tensor([0.0]), x, scale)
    assert ties_only(torch.tensor([0.5]), torch.tensor([0.0]), torch.tensor([0.25]), scale) == 1
