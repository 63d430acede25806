"""Live modules of the real pytorch-quantization, and ours: the same numbers on both sides, and on the way back."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import qdq
from qdq.errors import CheckpointError, ConfigError, ExportError, RecipeError
from qdq.interop.pytorch_quantization import from_live, to_live
from qdq.models.ops import Add
from qdq.quantization.modules import QuantAdd, QuantEmbedding, QuantLinear
from qdq.quantization.quantizer import Mode, Quantizer, Range, quantizers, set_mode
from qdq.quantization.spec import PerAxis, PerGroup, PerTensor, PerToken, QuantSpec
from qdq.quantization.wrap import apply_specs, named_slots, slots

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from tests.interop.pytorch_quantization.conftest import Golden

toolkit = pytest.importorskip("pytorch_quantization.nn", reason="pip install 'qdq[pytorch-quantization]'")
from pytorch_quantization.tensor_quant import QuantDescriptor  # noqa: E402 - behind the skip

ROW = QuantDescriptor(axis=0)


class Block(nn.Module):
    """Two quantized linears, a plain one, and a residual that its user quantized by hand."""

    def __init__(self, activation: QuantDescriptor, weight: QuantDescriptor) -> None:
        super().__init__()
        own = {"quant_desc_input": activation, "quant_desc_weight": weight}
        self.up = toolkit.QuantLinear(12, 20, **own)
        self.down = toolkit.QuantLinear(20, 12, bias=False, **own)
        self.plain = nn.Linear(12, 12)
        self.residual_quantizer = toolkit.TensorQuantizer(activation)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.plain(self.down(self.up(x).relu()) + self.residual_quantizer(x.relu()))
        return y


def block(activation: dict[str, Any] | None = None, weight: dict[str, Any] | None = None) -> Block:
    return Block(QuantDescriptor(**(activation or {})), QuantDescriptor(**({"axis": 0} if weight is None else weight)))


def batch(seed: int = 1) -> Tensor:
    return torch.randn(4, 7, 12, generator=torch.Generator().manual_seed(seed))


def tensor_quantizers(model: nn.Module) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, toolkit.TensorQuantizer)]


def calibrated(model: nn.Module, x: Tensor) -> nn.Module:
    """Max calibration in the toolkit's own manner."""
    for quantizer in tensor_quantizers(model):
        quantizer.disable_quant()
        quantizer.enable_calib()
    model(x)
    for quantizer in tensor_quantizers(model):
        quantizer.load_calib_amax()
        quantizer.disable_calib()
        quantizer.enable_quant()
    return model


def assert_same(left: nn.Module, right: nn.Module, x: Tensor) -> None:
    """Outputs and the gradients of all parameters and of the input, to the bit."""
    found = []
    for model in (left, right):
        model.zero_grad()
        leaf = x.clone().requires_grad_()
        y = model(leaf)
        y.square().sum().backward()
        found.append([y.detach(), leaf.grad, *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(found[0]) == len(found[1]) > 3
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


DESCRIPTORS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "default": ({}, {"axis": 0}),
    "weight-per-tensor": ({}, {}),
    "weight-per-column": ({}, {"axis": 1}),
    "axis-as-tuple": ({}, {"axis": (0,)}),
    "narrow": ({"narrow_range": True}, {"axis": 0, "narrow_range": True}),
    "four-bits": ({"num_bits": 4}, {"axis": 0, "num_bits": 4}),
    "unsigned": ({"unsigned": True}, {"axis": 0}),
    "unsigned-narrow": ({"unsigned": True, "narrow_range": True}, {}),
    "given-range": ({"amax": 1.5}, {"amax": 0.25}),
}


@pytest.mark.parametrize("kind", ["dynamic", "calibrated"])
@pytest.mark.parametrize(("activation", "weight"), DESCRIPTORS.values(), ids=DESCRIPTORS)
def test_there_and_back(activation: dict[str, Any], weight: dict[str, Any], kind: str) -> None:
    original, x = block(activation, weight).eval(), batch()
    x = x.abs() if activation.get("unsigned") else x
    if kind == "calibrated":
        calibrated(original, x * 0.8)
    model = copy.deepcopy(original)
    weights = list(model.parameters())
    state = original.state_dict()

    assert from_live(model) is model
    assert not tensor_quantizers(model)
    assert isinstance(model.up, QuantLinear)
    assert isinstance(model.residual_quantizer, Quantizer)
    assert type(model.plain) is nn.Linear
    assert all(a is b for a, b in zip(model.parameters(), weights, strict=True)), "the same Parameters"
    assert_same(model, original, x)

    assert to_live(model) is model
    assert not list(quantizers(model))
    assert type(model.up) is toolkit.QuantLinear
    assert (model.up.in_features, model.up.out_features) == (12, 20)
    assert all(a is b for a, b in zip(model.parameters(), weights, strict=True))
    assert_same(model, original, x)
    again = model.state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[key], state[key]) and again[key].shape == state[key].shape for key in state)
    for mine, other in zip(tensor_quantizers(model), tensor_quantizers(original), strict=True):
        assert (mine.num_bits, mine.unsigned) == (other.num_bits, other.unsigned)
        assert mine.narrow_range == (other.narrow_range and not other.unsigned)


def test_a_single_module_and_one_that_stands_twice() -> None:
    linear = toolkit.QuantLinear(5, 3)
    ours = from_live(linear)
    assert type(ours) is QuantLinear
    assert ours.weight is linear.weight
    assert torch.equal(ours(batch()[..., :5]), linear(batch()[..., :5]))
    assert type(to_live(ours)) is toolkit.QuantLinear
    twice = from_live(nn.Sequential(linear, nn.ReLU(), nn.Sequential(nn.Linear(3, 5), linear)))
    assert twice[0] is twice[2][1]  # type: ignore[index]
    assert isinstance(from_live(toolkit.TensorQuantizer()), Quantizer)


def test_training_goes_on() -> None:
    model = block().train()
    assert from_live(model).training
    assert all(module.training for module in model.modules())
    assert to_live(model.eval()) is model
    assert not any(module.training for module in model.modules())


@pytest.mark.parametrize("switch", ["disable", "disable_quant"])
def test_quantizers_that_are_off_stay_off(switch: str) -> None:
    original = calibrated(block(), batch())
    getattr(original.up._weight_quantizer, switch)()
    getattr(original.down._input_quantizer, switch)()
    model = from_live(copy.deepcopy(original))
    assert model.up.weight_quantizer.spec is None
    assert model.down.input_quantizer.spec is None
    assert torch.equal(model.down.input_quantizer.range.amax, original.down._input_quantizer.amax)
    set_mode(model, Mode.QUANTIZE)
    assert_same(model, original, batch())
    back = to_live(model)
    assert back.down._input_quantizer._disabled
    assert torch.equal(back.down._input_quantizer.amax, original.down._input_quantizer.amax)
    assert_same(back, original, batch())


def test_ours_that_are_off_stay_off() -> None:
    model = from_live(calibrated(block(), batch()))
    set_mode(model, Mode.OFF)
    expected = model(batch())
    assert torch.equal(to_live(model)(batch()), expected)
    assert not any(quantizer._if_quant for quantizer in tensor_quantizers(model))


def edit(**values: Any) -> Callable[[Any], None]:
    return lambda quantizer: quantizer.__dict__.update(values)


def with_amax(amax: Tensor) -> Callable[[Any], None]:
    return lambda quantizer: quantizer.register_buffer("_amax", amax)


REFUSED: dict[str, tuple[str, Callable[[Any], None], str]] = {
    "axis-of-an-input": (
        "up._input_quantizer",
        edit(_axis=2),
        "up: input: its axis is 2, an activation has one",
    ),
    "several-axes": ("up._weight_quantizer", edit(_axis=(0, 1)), r"its axis is \(0, 1\), must be one"),
    "negative-axis": ("up._weight_quantizer", edit(_axis=-1), "its axis is -1, must be one, counted from the front"),
    "axis-that-is-not-there": (
        "up._weight_quantizer",
        edit(_axis=2),
        r"axis is 2, of a weight of shape \[20, 12\]",
    ),
    "ranges-of-several-axes": ("up._weight_quantizer", with_amax(torch.ones(20, 12)), r"its axis is \(0, 1\)"),
    "ranges-of-another-weight": ("up._weight_quantizer", with_amax(torch.ones(7, 1)), "7 ranges for axis 0"),
    "learn_amax": ("down._input_quantizer", edit(_learn_amax=True), "down: input: its range is learned"),
    "scale_amax": ("down._input_quantizer", edit(_scale_amax=0.9), "its range is scaled"),
    "if_clip": ("down._input_quantizer", edit(_if_clip=True), "it clips its input"),
    "if_calib": ("residual_quantizer", edit(_if_calib=True, _if_quant=False), "residual_quantizer: it is being cal"),
    "integers": ("residual_quantizer", edit(_fake_quant=False), "it gives integers"),
    "sixteen-bits": ("residual_quantizer", edit(_num_bits=16), "bits is 16, must be a whole number from 2 to 8"),
    "nan": ("up._weight_quantizer", with_amax(torch.tensor(torch.nan)), "up: weight: its range is NaN or infinite"),
    "negative": ("residual_quantizer", with_amax(torch.tensor(-1.0)), r"its range is a negative range \(-1\)"),
}


@pytest.mark.parametrize(("name", "change", "message"), REFUSED.values(), ids=REFUSED)
def test_what_has_no_counterpart_is_named(name: str, change: Callable[[Any], None], message: str) -> None:
    model = block()
    change(model.get_submodule(name))
    modules = list(model.modules())
    with pytest.raises(RecipeError, match=message):
        from_live(model)
    assert list(model.modules()) == modules, "as it was"


def test_all_problems_arrive_together() -> None:
    model = block({"scale_amax": 2.0}, {"axis": (0, 1)})
    with pytest.raises(RecipeError, match="Block: 5 problems") as caught:
        from_live(model)
    assert all(name in str(caught.value) for name in ("up: input", "up: weight", "down: weight", "residual_quantizer"))


def test_a_learned_range_of_the_toolkit_itself() -> None:
    with pytest.raises(RecipeError, match=r"learn_amax.*|2 problems"):
        from_live(toolkit.TensorQuantizer(QuantDescriptor(learn_amax=True, amax=1.0)))


# --- from ours ---


def ours(kind: type[nn.Module], specs: dict[str, QuantSpec]) -> nn.Module:
    """A wrapped module of one kind in a model, calibrated."""
    made = {QuantLinear: nn.Linear(6, 4), QuantEmbedding: nn.Embedding(5, 4), QuantAdd: Add()}[kind]
    model = nn.Sequential(kind.from_float(made), nn.Linear(4, 2))  # type: ignore[attr-defined]
    apply_specs(model, {slot: specs.get(slot.name) for slot in slots(model)})
    for _, quantizer in quantizers(model):
        if not quantizer.is_calibrated:
            two = torch.tensor(2.0)
            quantizer.set_range(Range(-two, two, two))
    set_mode(model, Mode.QUANTIZE)
    return model


def test_our_own_arithmetic_goes_over_up_to_ties() -> None:
    model = ours(QuantLinear, {"input": QuantSpec(), "weight": QuantSpec(granularity=PerAxis(-2))})
    x = torch.randn(3, 6)
    expected = model(x)
    back = to_live(model)
    assert back[0]._weight_quantizer.amax.shape == (4, 1)  # type: ignore[index]
    torch.testing.assert_close(back(x), expected, rtol=1e-5, atol=1e-5)


INEXPRESSIBLE = {
    "affine": (QuantLinear, {"input": QuantSpec(symmetric=False)}, "0: input: .* symmetric ranges"),
    "middle-of-unsigned": (QuantLinear, {"input": QuantSpec(signed=False)}, "0: input: .* zero point of 0"),
    "groups": (QuantLinear, {"weight": QuantSpec(granularity=PerGroup(2))}, r"0: weight: .* per-group\(2\)"),
    "tokens": (QuantLinear, {"input": QuantSpec(granularity=PerToken(), dynamic=True)}, "no granularity per-token"),
    "learned": (QuantLinear, {"weight": QuantSpec(learned_scale=True)}, "no trained scales"),
    "table": (QuantEmbedding, {"weight": QuantSpec()}, "0: .* no counterpart of a quantized QuantEmbedding"),
    "addition": (QuantAdd, {"other": QuantSpec()}, "0: .* no counterpart of a quantized QuantAdd"),
}


@pytest.mark.parametrize(("kind", "specs", "message"), INEXPRESSIBLE.values(), ids=INEXPRESSIBLE)
def test_what_the_toolkit_cannot_express(kind: type[nn.Module], specs: dict[str, QuantSpec], message: str) -> None:
    model = ours(kind, specs)
    modules = list(model.modules())
    with pytest.raises(ExportError, match=message):
        to_live(model)
    assert list(model.modules()) == modules


def test_uncalibrated_is_refused_and_additions_without_spec_stay() -> None:
    model = ours(QuantLinear, {"input": QuantSpec()})
    model[0].input_quantizer.configure(QuantSpec())  # type: ignore[union-attr]
    with pytest.raises(ExportError, match="0: input: not calibrated"):
        to_live(model)
    addition = ours(QuantAdd, {})
    assert isinstance(to_live(addition)[0], QuantAdd)  # type: ignore[index]


def test_a_stand_alone_quantizer_with_an_axis_comes_but_does_not_go() -> None:
    theirs = toolkit.TensorQuantizer(QuantDescriptor(axis=1))
    theirs.register_buffer("_amax", torch.tensor([1.0, 2.0, 0.5]).reshape(1, 3, 1))
    x = torch.randn(2, 3, 4)
    model = from_live(nn.Sequential(theirs))
    assert torch.equal(model(x), theirs(x))
    with pytest.raises(ExportError, match="the number of axes of its tensor is unknown"):
        to_live(model)


# --- a whole QDQBERT ---


def grow(golden: Golden) -> nn.Module:
    """A module with upstream's names, of the toolkit's real parts and with upstream's weights and ranges.

    It stands in for the class in transformers, which the releases that this project runs with no longer have; only its
    names, configuration and state are read.
    """
    name = golden.config["architectures"][0]
    config = SimpleNamespace(model_type="qdqbert", to_dict=lambda: dict(golden.config))
    root = type(name, (nn.Module,), {})()
    root.config = config

    def parent(path: list[str]) -> nn.Module:
        module: nn.Module = root
        for part in path:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        return module

    linears = {key.partition("._weight")[0] for key in golden.amax if "_weight_quantizer" in key}
    for path in linears:
        weight, bias = (golden.weights[f"{path}.{leaf}"] for leaf in ("weight", "bias"))
        linear = toolkit.QuantLinear(weight.shape[1], weight.shape[0])
        linear.weight, linear.bias = nn.Parameter(weight), nn.Parameter(bias)
        *above, leaf = path.split(".")
        parent(above).add_module(leaf, linear)
    for key, tensor in golden.amax.items():
        *above, leaf, _ = key.split(".")
        holder = parent(above)
        if leaf not in holder._modules:
            holder.add_module(leaf, toolkit.TensorQuantizer())
        holder.get_submodule(leaf).register_buffer("_amax", tensor)
    for key, tensor in golden.weights.items():
        *above, leaf = key.split(".")
        if ".".join(above) not in linears:
            parent(above).register_parameter(leaf, nn.Parameter(tensor))
    assert root.state_dict().keys() == golden.state.keys()
    return root.eval()


def test_a_whole_model(golden: Golden, tmp_path: Path) -> None:
    theirs = grow(golden)
    model = from_live(theirs)
    with torch.no_grad():
        output, expected = model(**golden.inputs), qdq.load(golden.write(tmp_path / "c"))(**golden.inputs)
    for name in golden.tensors("calibrated"):
        assert torch.equal(output[name], expected[name])
    held = {p.data_ptr() for p in theirs.parameters()}
    assert {p.data_ptr() for p in model.parameters()} <= held, "the same memory"
    assert len(tensor_quantizers(theirs)) == len(golden.amax), "the live model is as it was"


def test_a_whole_model_quantizer_by_quantizer(golden_classifier: Golden) -> None:
    theirs = grow(golden_classifier)
    layer: Any = theirs.get_submodule("bert.encoder.layer.0")
    layer.attention.self.key._input_quantizer.disable()
    layer.attention.self.matmul_a_input_quantizer._unsigned = True
    layer.output.add_local_input_quantizer._num_bits = 4
    del layer.output.dense._weight_quantizer._amax
    layer.output.dense._weight_quantizer._axis = None
    layer.intermediate.dense._weight_quantizer._narrow_range = True
    specs = {str(slot): quantizer.spec for slot, quantizer in named_slots(from_live(theirs))}
    kind = {"arithmetic": "pytorch-quantization"}
    expected = {
        "attention.key.input": None,
        "attention.query.input": QuantSpec(**kind),
        "attention.context.input": QuantSpec(**kind, signed=False),
        "feed_forward.add.input": QuantSpec(**kind, bits=4),
        "feed_forward.down.weight": QuantSpec(**kind, dynamic=True, granularity=PerTensor()),
        "feed_forward.up.weight": QuantSpec(**kind, narrow_range=True, granularity=PerAxis(0)),
    }
    assert {name: specs[f"encoder.layers.0.{name}"] for name in expected} == expected


def test_a_whole_model_with_problems(golden_classifier: Golden) -> None:
    theirs = grow(golden_classifier)
    edit(_scale_amax=2.0)(theirs.get_submodule("bert.encoder.layer.0.attention.self.query._input_quantizer"))
    addition = theirs.get_submodule("bert.encoder.layer.1.output.add_local_input_quantizer")
    edit(_axis=1)(addition)
    addition._buffers.pop("_amax")
    theirs.get_submodule("bert.encoder.layer.1").add_module("more_quantizer", toolkit.TensorQuantizer())
    with pytest.raises(RecipeError, match="QDQBertForSequenceClassification: 3 problems") as caught:
        from_live(theirs)
    for problem in ("query._input_quantizer: its range is scaled", "its axis is 1", "no such quantizer"):
        assert problem in str(caught.value)


def test_a_whole_model_that_is_none(golden_classifier: Golden) -> None:
    theirs = grow(golden_classifier)
    del theirs.get_submodule("bert.encoder.layer.1.output").LayerNorm
    with pytest.raises(CheckpointError, match="2 missing"):
        from_live(theirs)
    theirs = type("MyOwnBert", (nn.Module,), {})()
    theirs.config = grow(golden_classifier).config
    theirs.weight = nn.Parameter(torch.zeros(1))
    with pytest.raises(ConfigError, match="MyOwnBert"):
        from_live(theirs)


def test_a_whole_model_goes_back_as_a_checkpoint(golden_classifier: Golden, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="no counterpart of a quantized QuantMatMul"):
        to_live(qdq.load(golden_classifier.write(tmp_path / "c")))
