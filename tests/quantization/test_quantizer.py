from __future__ import annotations

import copy
import dataclasses
import io
import pickle
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor, nn

from qdq.errors import CalibrationError
from qdq.quantization.quantizer import Mode, Quantizer, Range, quantizers, set_mode
from qdq.quantization.spec import PerAxis, PerTensor, PerToken, QuantSpec

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.quantization.conftest import Duplicate

INT8 = QuantSpec()
UINT8 = QuantSpec(signed=False, symmetric=False)
ROWS = QuantSpec(granularity=PerAxis(0))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The tensors here are tiny: threads would only wait for each other."""
    torch.set_num_threads(1)


def calibrated(spec: QuantSpec = INT8, scale: float = 0.0625) -> Quantizer:
    quantizer = Quantizer(spec)
    quantizer.set_scale(torch.tensor(scale), torch.tensor(spec.middle))
    return quantizer


class Three(nn.Module):
    """Two quantizers of its own, one of them under two names, and one without spec."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Quantizer(INT8)
        self.block = nn.ModuleDict({"again": self.first, "second": Quantizer(ROWS, shape=(3,))})
        self.empty = Quantizer()


class Memory:
    """An observer and a recorder that keeps what it sees."""

    def __init__(self) -> None:
        self.seen: list[Tensor | tuple[Tensor, Tensor]] = []

    def update(self, x: Tensor) -> None:
        self.seen.append(x)

    def __call__(self, x: Tensor, q: Tensor) -> None:
        self.seen.append((x, q))


def test_off_passes_the_very_tensor_on() -> None:
    x = torch.randn(5)
    assert calibrated()(x) is x
    assert Quantizer()(x) is x


def test_collect_shows_the_tensor_without_its_graph_and_passes_it_on() -> None:
    quantizer, memory = Quantizer(), Memory()
    quantizer.mode, quantizer.observer = Mode.COLLECT, memory
    x = torch.randn(5, requires_grad=True)
    assert quantizer(x) is x
    assert torch.equal(memory.seen[0], x)
    assert not memory.seen[0].requires_grad
    quantizer.observer = None
    assert quantizer(x) is x


def test_quantize_is_torch_fake_quantize() -> None:
    x = torch.randn(1000)
    quantizer = calibrated()
    quantizer.mode = Mode.QUANTIZE
    assert torch.equal(quantizer(x), torch.fake_quantize_per_tensor_affine(x, 0.0625, 0, -128, 127))

    rows = Quantizer(ROWS, shape=(4,))
    scale = torch.tensor([0.5, 0.25, 0.125, 0.0625])
    rows.set_scale(scale, torch.zeros(4, dtype=torch.int32))
    rows.mode = Mode.QUANTIZE
    x = torch.randn(4, 9)
    assert torch.equal(
        rows(x), torch.fake_quantize_per_channel_affine(x, scale, torch.zeros(4, dtype=torch.int32), 0, -128, 127)
    )


def test_recorder_sees_the_integers_of_the_output() -> None:
    quantizer, memory = calibrated(), Memory()
    quantizer.recorder = memory
    x = torch.randn(50, requires_grad=True)
    quantizer(x)
    assert memory.seen == [], "nothing to record while it is off"
    quantizer.mode = Mode.QUANTIZE
    y = quantizer(x)
    ((seen, integers),) = memory.seen
    assert torch.equal(seen, x)
    assert torch.equal(integers * 0.0625, y)
    assert not seen.requires_grad
    assert not integers.requires_grad


def test_new_quantizer_has_no_scale_yet() -> None:
    for quantizer, shape in ((Quantizer(INT8), ()), (Quantizer(ROWS, shape=(3,)), (3,))):
        assert not quantizer.is_calibrated
        assert quantizer.scale.shape == quantizer.zero_point.shape == shape
        assert quantizer.scale.dtype == torch.float32
        assert quantizer.zero_point.dtype == torch.int32
        assert bool(quantizer.scale.isnan().all())
    assert not Quantizer(ROWS).is_calibrated, "no channels, no scale"


def test_slot_without_spec_has_no_state() -> None:
    assert dict(Quantizer().state_dict()) == {}
    assert Quantizer().is_calibrated


def test_every_uncalibrated_slot_is_named_and_nothing_is_switched() -> None:
    model = Three()
    with pytest.raises(CalibrationError) as caught:
        set_mode(model, Mode.QUANTIZE)
    assert "first" in str(caught.value)
    assert "block.second" in str(caught.value)
    assert "empty" not in str(caught.value)
    assert {quantizer.mode for _, quantizer in quantizers(model)} == {Mode.OFF}


def test_quantize_reaches_the_slots_with_a_spec_and_the_other_modes_all() -> None:
    model = Three()
    model.first.set_scale(torch.tensor(1.0), torch.tensor(0))
    model.get_submodule("block.second").set_scale(torch.ones(3), torch.zeros(3, dtype=torch.int32))
    for mode in (Mode.COLLECT, Mode.QUANTIZE, Mode.OFF):
        set_mode(model, mode)
        assert model.first.mode is mode
        assert model.empty.mode is (Mode.OFF if mode is Mode.QUANTIZE else mode)


def test_shared_quantizer_comes_once_under_its_first_name() -> None:
    assert [name for name, _ in quantizers(Three())] == ["first", "block.second", "empty"]


@pytest.mark.parametrize(
    "cast",
    [
        lambda model: model.half(),
        lambda model: model.to(torch.bfloat16),
        lambda model: model.double(),
        lambda model: model.to("cpu", torch.float16),
        lambda model: model.half().float(),
    ],
    ids=["half", "bfloat16", "double", "device-and-half", "there-and-back"],
)
def test_scale_stays_float32_to_the_last_bit(cast: Callable[[nn.Sequential], nn.Sequential]) -> None:
    model = nn.Sequential(nn.Linear(2, 2), calibrated(scale=0.1))
    model = cast(model)
    assert model[1].scale.dtype == torch.float32
    assert torch.equal(model[1].scale, torch.tensor(0.1))
    assert model[1].zero_point.dtype == torch.int32
    assert set(dict(model[1].named_buffers())) == {"scale", "zero_point"}
    model[1].mode = Mode.QUANTIZE
    x = torch.randn(7).to(model[0].weight.dtype)
    assert model[1](x).dtype == x.dtype


def test_meta_device_and_back_to_memory() -> None:
    quantizer = calibrated().to("meta")
    assert quantizer.scale.is_meta
    assert quantizer.scale.dtype == torch.float32


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))], ids=["deepcopy", "pickle"]
)
def test_duplicate_is_equal_and_independent(duplicate: Duplicate) -> None:
    model = Three()
    range_ = Range(torch.tensor(-1.0), torch.tensor(3.0), torch.tensor(3.0))
    model.first.set_range(range_)
    model.first.mode = Mode.QUANTIZE
    copied = duplicate(model)
    x = torch.randn(100)
    assert torch.equal(copied.first(x), model.first(x))
    assert copied.first is copied.block["again"], "what was shared still is"
    assert copied.first.mode is Mode.QUANTIZE
    assert copied.first.spec == model.first.spec
    assert torch.equal(copied.first.range.amax, range_.amax)
    copied.first.set_scale(torch.tensor(9.0), torch.tensor(0))
    assert float(model.first.scale) != 9


def test_state_dict_round_trip() -> None:
    model, other = Three(), Three()
    model.first.set_range(Range(torch.tensor(-1.0), torch.tensor(3.0), torch.tensor(3.0)))
    model.get_submodule("block.second").set_scale(torch.rand(3) + 1, torch.zeros(3, dtype=torch.int32))
    other.first.set_range(Range(torch.tensor(-9.0), torch.tensor(9.0), torch.tensor(9.0)))
    buffer = io.BytesIO()
    torch.save(model.state_dict(), buffer)
    buffer.seek(0)
    result = other.load_state_dict(torch.load(buffer, weights_only=True))
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert torch.equal(other.first.scale, model.first.scale)
    assert torch.equal(other.get_submodule("block.second").scale, model.get_submodule("block.second").scale)
    assert other.first.range is None, "the range belonged to the scale that was replaced"


def test_range_gives_each_spec_its_grid() -> None:
    range_ = Range(torch.tensor(-1.0), torch.tensor(3.0), torch.tensor(2.54))
    symmetric, affine, unsigned = Quantizer(INT8), Quantizer(UINT8), Quantizer(QuantSpec(signed=False))
    for quantizer in (symmetric, affine, unsigned):
        quantizer.set_range(range_)
        assert quantizer.range is range_
        assert quantizer.is_calibrated
    assert float(symmetric.scale) == pytest.approx(0.02)
    assert int(symmetric.zero_point) == 0
    assert float(affine.scale) == pytest.approx(4 / 255)
    assert int(affine.zero_point) == 64
    assert float(unsigned.scale) == pytest.approx(0.02)
    assert int(unsigned.zero_point) == 128
    empty = Quantizer()
    empty.set_range(range_)
    assert empty.range is range_
    assert dict(empty.state_dict()) == {}


def test_scale_is_filled_in_place() -> None:
    quantizer = Quantizer(INT8)
    scale = quantizer.scale
    quantizer.set_scale(torch.tensor(0.5, dtype=torch.float64), torch.tensor(0, dtype=torch.int64))
    assert quantizer.scale is scale
    assert (quantizer.scale.dtype, quantizer.zero_point.dtype) == (torch.float32, torch.int32)


BAD = float("nan")


@pytest.mark.parametrize(
    ("spec", "scale", "zero_point", "words"),
    [
        (INT8, torch.tensor([1.0]), torch.tensor([0]), ["expected ()"]),
        (INT8, torch.tensor(BAD), torch.tensor(0), ["finite and positive"]),
        (INT8, torch.tensor(float("inf")), torch.tensor(0), ["finite and positive"]),
        (INT8, torch.tensor(0.0), torch.tensor(0), ["finite and positive"]),
        (INT8, torch.tensor(-1.0), torch.tensor(0), ["finite and positive"]),
        (INT8, torch.tensor(1e-320, dtype=torch.float64), torch.tensor(0), ["finite and positive"]),
        (INT8, torch.tensor(1.0), torch.tensor(3), ["zero_point must be 0"]),
        (QuantSpec(signed=False), torch.tensor(1.0), torch.tensor(0), ["zero_point must be 128"]),
        (UINT8, torch.tensor(1.0), torch.tensor(256), ["[0, 255]"]),
        (UINT8, torch.tensor(1.0), torch.tensor(-1), ["[0, 255]"]),
        (UINT8, torch.tensor(1.0), torch.tensor(0.5), ["whole numbers"]),
        (ROWS, torch.tensor([1.0, BAD, 1.0]), torch.tensor([0, 0, 7]), ["2 problems", "finite", "must be 0"]),
        (ROWS, torch.tensor([1.0, BAD]), torch.tensor([0, 7]), ["3 problems", "(2,)", "(3,)", "finite", "must be 0"]),
    ],
    ids=str,
)
def test_refused_scales_are_explained_and_change_nothing(
    spec: QuantSpec, scale: Tensor, zero_point: Tensor, words: list[str]
) -> None:
    quantizer = Quantizer(spec, shape=() if spec.axis is None else (3,))
    with pytest.raises(CalibrationError) as caught:
        quantizer.set_scale(scale, zero_point)
    for word in [str(spec), *words]:
        assert word in str(caught.value)
    assert not quantizer.is_calibrated
    assert bool((quantizer.zero_point == 0).all())


def test_another_spec_starts_uncalibrated() -> None:
    quantizer = calibrated()
    quantizer.mode = Mode.QUANTIZE
    quantizer.configure(ROWS, shape=(2,))
    assert quantizer.scale.shape == (2,)
    assert not quantizer.is_calibrated
    quantizer.configure(None)
    assert quantizer.mode is Mode.OFF
    assert dict(quantizer.named_buffers()) == {}


def test_gradient_passes_straight_through_the_module() -> None:
    quantizer = calibrated(scale=0.01)
    quantizer.mode = Mode.QUANTIZE
    x = torch.tensor([0.5, 1.0, 5.0], requires_grad=True)
    quantizer(x).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [1, 1, 0]


def test_print_shows_spec_and_mode() -> None:
    assert "int8 symmetric per-tensor, off" in str(calibrated())
    assert "float, off" in str(Quantizer())


# --- several readers of one tensor ---


def shared(readers: int) -> Quantizer:
    quantizer = calibrated()
    quantizer.mode, quantizer.readers = Mode.QUANTIZE, readers
    return quantizer


def test_readers_of_one_tensor_share_one_result() -> None:
    quantizer = shared(3)
    quantizer.recorder = Memory()
    for x in (torch.randn(4, requires_grad=True), torch.randn(4)):
        first, second, third = (quantizer(x, reader) for reader in (0, 1, 2))
        assert first is second is third
    assert len(quantizer.recorder.seen) == 2, "computed once a tensor"
    assert quantizer._shared is None, "nothing is kept when the last reader has it"


def test_shared_result_is_never_an_old_one() -> None:
    quantizer, x = shared(2), torch.randn(4)
    first = quantizer(x, 0)
    x.mul_(3)
    assert torch.equal(quantizer(x, 1), calibrated_result(x)), "changed in place between the readers"
    other = torch.randn(4)
    assert torch.equal(quantizer(other, 0), calibrated_result(other))
    assert not torch.equal(first, quantizer(x, 0))
    with torch.no_grad():
        without = quantizer(x.requires_grad_(), 0)
    assert quantizer(x, 1).requires_grad, "the next reader wants a gradient"
    assert not without.requires_grad
    before = quantizer(x, 0)
    quantizer.set_scale(torch.tensor(0.5), torch.tensor(0))
    assert not torch.equal(quantizer(x, 1), before), "the scale has changed between the readers"


def test_reader_that_asks_again_gets_a_graph_of_its_own() -> None:
    quantizer, x = shared(3), torch.randn(4, requires_grad=True)
    for _ in range(3):
        quantizer(x, 0).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [3, 3, 3, 3]


def calibrated_result(x: Tensor) -> Tensor:
    alone = calibrated()
    alone.mode = Mode.QUANTIZE
    return alone(x)


def test_shared_result_goes_neither_into_copies_nor_files() -> None:
    quantizer, x = shared(2), torch.randn(4, requires_grad=True)
    (quantizer(x) * 2).sum().backward()
    for other in (copy.deepcopy(quantizer), pickle.loads(pickle.dumps(quantizer))):
        assert other._shared is None
        assert torch.equal(other(x), quantizer(x))


def test_inference_tensors_are_shared_too() -> None:
    quantizer = shared(2)
    with torch.inference_mode():
        x = torch.randn(4)
        assert quantizer(x, 0) is quantizer(x, 1)


# --- ranges that are not calibrated ---

DYNAMIC = [
    pytest.param(QuantSpec(dynamic=True), id="per-tensor"),
    pytest.param(QuantSpec(dynamic=True, signed=False, symmetric=False), id="per-tensor-uint8"),
    pytest.param(QuantSpec(dynamic=True, granularity=PerToken(), bits=4), id="per-token-int4"),
]


@pytest.mark.parametrize("spec", DYNAMIC)
def test_dynamic_range_is_that_of_the_tensor(spec: QuantSpec) -> None:
    quantizer = Quantizer(spec)
    assert quantizer.is_calibrated
    assert dict(quantizer.state_dict()) == {}
    set_mode(quantizer, Mode.QUANTIZE)
    x = torch.randn(2, 3, 16) * torch.tensor([0.1, 1, 50])[:, None]
    parts = x if spec.granularity == PerToken() else x[None]
    for part, got in zip(parts.flatten(0, -2), quantizer(x).reshape(parts.shape).flatten(0, -2), strict=True):
        whole = part if spec.granularity == PerToken() else x
        static = Quantizer(dataclasses.replace(spec, dynamic=False, granularity=PerTensor()))
        static.set_range(Range(whole.min(), whole.max(), whole.abs().max()))
        static.mode = Mode.QUANTIZE
        torch.testing.assert_close(got, static(part), rtol=0, atol=0)


def test_learned_scale_is_a_parameter_in_float32() -> None:
    quantizer = Quantizer(QuantSpec(learned_scale=True, granularity=PerAxis(0)), shape=(3,))
    assert [name for name, _ in quantizer.named_parameters()] == ["scale"]
    amax = torch.tensor([1.0, 2.0, 3.0])
    quantizer.set_range(Range(-amax, amax, amax))
    before = quantizer.scale.detach().clone()
    quantizer.half()
    assert quantizer.scale.dtype == torch.float32
    assert torch.equal(quantizer.scale, before), "not rounded on the way"
    assert isinstance(quantizer.scale, nn.Parameter)
    set_mode(quantizer, Mode.QUANTIZE)
    quantizer(torch.randn(3, 8)).sum().backward()
    assert quantizer.scale.grad is not None
    assert bool((quantizer.scale.grad != 0).any())


def test_foreign_arithmetic_keeps_its_range_beside_the_scale() -> None:
    spec = QuantSpec(arithmetic="pytorch-quantization")
    quantizer = Quantizer(spec)
    quantizer.set_range(Range(torch.tensor(-1.0), torch.tensor(0.5), torch.tensor(0.9)))
    assert quantizer.amax == torch.tensor(0.9)
    assert set(quantizer.state_dict()) == {"scale", "zero_point", "amax"}
    unsigned = Quantizer(dataclasses.replace(spec, signed=False))
    unsigned.set_range(Range(torch.tensor(0.0), torch.tensor(0.5), torch.tensor(0.9)))
    assert unsigned.zero_point == 0
    assert unsigned.scale == torch.tensor(0.9) / torch.tensor(255.0)
    with pytest.raises(CalibrationError, match="not negative"):
        quantizer.set_amax(torch.tensor(-1.0))


@pytest.mark.parametrize("value", [-0.25, 0.25], ids=["beyond zero", "positive"])
def test_learned_scale_counts_by_its_magnitude_and_can_be_frozen(value: float) -> None:
    quantizer, x = Quantizer(QuantSpec(learned_scale=True)), torch.randn(50)
    with torch.no_grad():
        quantizer.scale.fill_(value)
    assert quantizer.is_calibrated
    set_mode(quantizer, Mode.QUANTIZE)
    want = calibrated(scale=0.25)
    want.mode = Mode.QUANTIZE
    assert torch.equal(quantizer(x), want(x))
    quantizer.freeze()
    assert list(quantizer.parameters()) == []
    assert quantizer.spec == INT8
    assert quantizer.mode is Mode.QUANTIZE
    assert torch.equal(quantizer(x), want(x))
