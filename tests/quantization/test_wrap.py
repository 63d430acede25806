"""Wrapping whole models: which slots get quantizers, which share one, and what a failure leaves behind."""

from __future__ import annotations

import copy
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import calibration
from qdq.errors import CalibrationError, RecipeError
from qdq.models.registry import FAMILIES, build, configure
from qdq.quantization.modules import WRAPPED
from qdq.quantization.quantizer import Mode, quantizers
from qdq.quantization.spec import PerAxis, QuantSpec
from qdq.quantization.wrap import apply_specs, named_slots, slots
from qdq.recipes.apply import apply_recipe, quantize
from qdq.recipes.recipe import Recipe, Rule, load_recipe, presets

if TYPE_CHECKING:
    from qdq.models.model import Model

LAYERS = 2
SMALL: dict[str, Any] = {
    "vocab_size": 61,
    "hidden_size": 16,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "initializer_range": 0.3,
}
OWN = {"albert": {"embedding_size": 8}, "realm": {"retriever_proj_size": 6}}
ENCODERS = [name for name in FAMILIES if name != "realm"]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """The tensors here are tiny: threads would only wait for each other."""
    torch.set_num_threads(1)


def tiny(model_type: str = "bert", task: str = "feature-extraction", **fields: Any) -> Model:
    return build(configure(model_type, **{**SMALL, **OWN.get(model_type, {}), **fields}), task).eval()


def batch(size: int = 3, length: int = 9) -> dict[str, Tensor]:
    ids = torch.randint(5, SMALL["vocab_size"], (size, length))
    mask = torch.ones_like(ids)
    mask[0, length // 2 :] = 0
    return {"input_ids": ids, "attention_mask": mask}


def everywhere(spec: QuantSpec | None, **settings: str) -> Recipe:
    return Recipe(name="everywhere", rules=(Rule(**{"module": "*", "slot": "*", **settings}, spec=spec),))


def layer_slots(model: nn.Module, inside: str = "encoder.layers.0.") -> tuple[int, int]:
    """Slots with a spec in one layer, and the quantizers that serve them; weights apart from activations."""
    served = [
        q for slot, q in named_slots(model) if slot.module.startswith(inside) and q.spec and slot.name != "weight"
    ]
    weights = [
        q for slot, q in named_slots(model) if slot.module.startswith(inside) and q.spec and slot.name == "weight"
    ]
    return len(served) + len(weights), len(set(served)) + len(set(weights))


# --- presets on models ---


@pytest.mark.parametrize(
    ("preset", "slot_count", "quantizers_"),
    [
        # six linears with two slots each; four operands of products; two operands of two additions
        pytest.param("linear", 12, 10, id="linear"),
        pytest.param("onnxruntime", 12, 10, id="onnxruntime"),
        pytest.param("openvino", 12, 10, id="openvino"),
        pytest.param("tensorrt", 12 + 4 + 2, 16, id="tensorrt"),
        pytest.param("qdqbert", 20, 18, id="qdqbert"),
    ],
)
def test_slots_and_quantizers_of_a_layer(preset: str, slot_count: int, quantizers_: int) -> None:
    model = quantize(tiny(), preset)
    for layer in range(LAYERS):
        assert layer_slots(model, f"encoder.layers.{layer}.") == (slot_count, quantizers_)
    outside = {str(slot) for slot, q in named_slots(model) if q.spec and not slot.module.startswith("encoder.")}
    tables = {f"embeddings.{name}.weight" for name in ("word", "position", "token_type")}
    assert outside == (tables if preset in ("onnxruntime", "openvino") else set())


@pytest.mark.parametrize("model_type", ENCODERS)
def test_slots_are_the_same_in_every_family(model_type: str) -> None:
    assert layer_slots(quantize(tiny(model_type), "qdqbert")) == (20, 18)


@pytest.mark.parametrize("preset", list(presets()))
@pytest.mark.parametrize("model_type", ENCODERS)
def test_every_preset_fits_every_family(model_type: str, preset: str) -> None:
    model = quantize(tiny(model_type), preset)
    linears = 6 if preset.startswith("weight-only") else 12
    assert sum(q.spec is not None for _, q in named_slots(model)) >= linears * LAYERS


def test_cross_attention_has_fourteen_slots_and_thirteen_quantizers() -> None:
    model = quantize(tiny(is_decoder=True, add_cross_attention=True), "qdqbert")
    assert layer_slots(model, "encoder.layers.0.cross_attention.") == (14, 13)
    assert layer_slots(model, "encoder.layers.0.attention.") == (14, 12)
    attention = model.encoder.layers[0].cross_attention
    assert attention.key.input_quantizer is attention.value.input_quantizer
    assert attention.key.input_quantizer is not attention.query.input_quantizer


# --- what wrapping does ---


@pytest.mark.parametrize("model_type", ENCODERS)
def test_off_computes_the_float_model_bit_for_bit(model_type: str) -> None:
    model = tiny(model_type)
    inputs = batch()
    with torch.no_grad():
        want = model(**inputs)
        quantize(model, "qdqbert")
        got = model(**inputs)
    assert torch.equal(got.last_hidden_state, want.last_hidden_state)


def test_parameters_are_the_same_objects_under_the_same_names() -> None:
    model = tiny(task="masked-lm")
    before = dict(model.named_parameters(remove_duplicate=False))
    quantize(model, "onnxruntime")
    after = dict(model.named_parameters(remove_duplicate=False))
    assert list(after) == list(before)
    assert all(after[name] is parameter for name, parameter in before.items())


def test_every_quantizable_module_is_wrapped_and_nothing_else() -> None:
    model = tiny()
    kinds = Counter(type(module) for module in model.modules())
    quantize(model, "linear")
    after = Counter(type(module) for module in model.modules())
    for kind, wrapped in WRAPPED.items():
        assert after[wrapped] == kinds[kind] > 0
        assert after[kind] == 0
    assert after[nn.LayerNorm] == kinds[nn.LayerNorm]


class OwnLinear(nn.Linear):
    """Computes what it likes."""


def test_subclass_of_linear_is_left_alone() -> None:
    model = tiny()
    own = OwnLinear(SMALL["hidden_size"], SMALL["hidden_size"])
    model.pooler.dense = own
    quantize(model, "linear")
    assert model.pooler.dense is own
    assert not any(slot.module == "pooler.dense" for slot in slots(model))


def test_quantizers_are_off_and_weights_have_their_scales() -> None:
    model = quantize(tiny(), "linear")
    assert {q.mode for _, q in quantizers(model)} == {Mode.OFF}
    for slot, quantizer in named_slots(model):
        if quantizer.spec is not None:
            assert quantizer.is_calibrated == (slot.name == "weight")
    linear = model.encoder.layers[0].feed_forward.up
    want = linear.weight.detach().abs().amax(dim=1) / 127
    assert torch.equal(linear.weight_quantizer.scale, want)


def test_second_quantize_is_refused() -> None:
    model = quantize(tiny(), "linear")
    with pytest.raises(RecipeError, match="quantized already; use apply_recipe"):
        quantize(model, "qdqbert")


# --- sharing ---


def test_query_key_and_value_share_their_input_quantizer() -> None:
    model = quantize(tiny(), "qdqbert")
    for layer in model.encoder.layers:
        attention = layer.attention
        assert attention.query.input_quantizer is attention.key.input_quantizer is attention.value.input_quantizer
        assert len({id(child.weight_quantizer) for child in (attention.query, attention.key, attention.value)}) == 3
    assert (
        model.encoder.layers[0].attention.query.input_quantizer
        is not model.encoder.layers[1].attention.query.input_quantizer
    )


def test_exclude_of_one_projection_unshares_it_alone() -> None:
    model = quantize(tiny(), load_recipe("qdqbert").restrict(exclude=["encoder.layers.0.attention.key"]))
    attention = model.encoder.layers[0].attention
    assert attention.query.input_quantizer is attention.value.input_quantizer
    assert attention.query.input_quantizer.spec is not None
    assert attention.key.input_quantizer.spec is None
    assert attention.key.weight_quantizer.spec is None
    assert layer_slots(model) == (18, 17)
    assert layer_slots(model, "encoder.layers.1.") == (20, 18)
    calibration.calibrate(model, [batch()])
    ranges = [getattr(attention, name).input_quantizer.range for name in ("query", "key", "value")]
    assert torch.equal(ranges[0].amax, ranges[1].amax), "both saw the same tensor"


def test_tied_weights_share_the_weight_quantizer() -> None:
    model = quantize(tiny(task="masked-lm"), everywhere(QuantSpec(granularity=PerAxis(0)), slot="weight"))
    assert model.head.decoder.weight is model.embeddings.word.weight
    assert model.head.decoder.weight_quantizer is model.embeddings.word.weight_quantizer
    for preset in ("onnxruntime", "openvino", "dynamic", "weight-only-int8", "weight-only-int4"):
        tied = quantize(tiny(task="masked-lm"), preset)
        assert tied.head.decoder.weight_quantizer is tied.embeddings.word.weight_quantizer, preset
        assert tied.head.decoder.weight_quantizer.spec is not None, preset
    untied = quantize(tiny(task="masked-lm"), load_recipe("onnxruntime").restrict(exclude=["head.decoder"]))
    assert untied.head.decoder.weight_quantizer is not untied.embeddings.word.weight_quantizer, "other specs"
    assert untied.head.decoder.weight_quantizer.spec is None


def test_repeated_layers_share_weight_quantizers_and_keep_their_own_ranges() -> None:
    model = quantize(tiny("albert"), "qdqbert")
    first, second = (layer.attention.query for layer in model.encoder.layers)
    assert first.weight is second.weight
    assert first.weight_quantizer is second.weight_quantizer
    assert first.input_quantizer is not second.input_quantizer


def test_sharing_survives_a_copy() -> None:
    attention = copy.deepcopy(quantize(tiny(), "qdqbert")).encoder.layers[0].attention
    assert attention.query.input_quantizer is attention.key.input_quantizer


# --- another recipe ---


@pytest.mark.parametrize("method", [calibration.Max(), calibration.Percentile(99.0)], ids=["max", "percentile"])
@pytest.mark.parametrize("other", [name for name in presets() if name != "qdqbert"])
def test_other_preset_after_calibration_equals_calibrating_with_it(other: str, method: calibration.Method) -> None:
    model = tiny()
    direct = quantize(copy.deepcopy(model), other)
    changed = quantize(model, "qdqbert")
    data = [batch(), batch(2, 5)]
    for each in (direct, changed):
        calibration.calibrate(each, data, method=method)
    apply_recipe(changed, load_recipe(other))
    assert {q.mode for _, q in quantizers(changed)} == {Mode.OFF}
    want, got = dict(direct.state_dict()), dict(changed.state_dict())
    assert list(got) == list(want)
    for name, tensor in want.items():
        assert torch.equal(got[name], tensor), name


def test_there_and_back_again_keeps_every_scale() -> None:
    model = quantize(tiny(), "qdqbert")
    calibration.calibrate(model, [batch()])
    want = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    for name in ("onnxruntime", "linear", "qdqbert"):
        apply_recipe(model, load_recipe(name))
    got = model.state_dict()
    assert list(got) == list(want)
    assert all(torch.equal(got[name], want[name]) for name in want)


# --- failures leave the model as it was ---


def modules_of(model: nn.Module) -> dict[str, tuple[type, int]]:
    return {name: (type(module), id(module)) for name, module in model.named_modules()}


def test_recipe_that_does_not_fit_leaves_a_float_model() -> None:
    model = tiny()
    before = modules_of(model)
    with pytest.raises(RecipeError, match=r"matches nothing"):
        quantize(model, everywhere(QuantSpec(), module="decoder.*"))
    assert modules_of(model) == before
    quantize(model, "linear")


def test_specs_that_slots_cannot_have_are_all_named() -> None:
    model = tiny()
    before = modules_of(model)
    wrong = Recipe(
        name="wrong",
        rules=(
            Rule(module="*", slot="weight", spec=QuantSpec(granularity=PerAxis(0))),
            Rule(module="*.0.attention.query", slot="input", spec=QuantSpec(granularity=PerAxis(0))),
            Rule(module="*.0.attention.key", slot="weight", spec=QuantSpec(granularity=PerAxis(2))),
            Rule(module="*.1.attention.key", slot="weight", spec=QuantSpec(granularity=PerAxis(-3))),
        ),
    )
    with pytest.raises(RecipeError) as caught:
        quantize(model, wrong)
    text = str(caught.value)
    assert "3 problems" in text
    assert "encoder.layers.0.attention.query.input: per-axis(0) is for weights" in text
    assert "encoder.layers.0.attention.key.weight: per-axis(2) does not exist in a weight of shape (16, 16)" in text
    assert "encoder.layers.1.attention.key.weight: per-axis(-3) does not exist" in text
    assert modules_of(model) == before


def test_axis_may_be_counted_from_the_end() -> None:
    ends, begins = (
        quantize(copy.deepcopy(model), everywhere(QuantSpec(granularity=PerAxis(axis)), slot="weight", kind="linear"))
        for model in [tiny()]
        for axis in (-2, 0)
    )
    for (name, want), got in zip(begins.state_dict().items(), ends.state_dict().values(), strict=True):
        assert torch.equal(got, want), name


@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_weights_that_are_not_finite_are_all_named(bad: float) -> None:
    model = tiny()
    with torch.no_grad():
        model.encoder.layers[0].attention.query.weight[3, 2] = bad
        model.encoder.layers[1].feed_forward.down.weight[0, 0] = bad
        model.pooler.dense.weight[0, 0] = bad  # stays float
    before = modules_of(model)
    with pytest.raises(CalibrationError) as caught:
        quantize(model, "linear")
    text = str(caught.value)
    assert "2 problems" in text
    assert "encoder.layers.0.attention.query.weight: NaN or infinite" in text
    assert "encoder.layers.1.feed_forward.down.weight: NaN or infinite" in text
    assert modules_of(model) == before


def test_failed_change_of_recipe_keeps_the_quantizers() -> None:
    model = quantize(tiny(), "qdqbert")
    calibration.calibrate(model, [batch()])
    before, modes = modules_of(model), [q.mode for _, q in quantizers(model)]
    with pytest.raises(RecipeError):
        apply_recipe(model, everywhere(QuantSpec(granularity=PerAxis(0)), slot="input"))
    specs = {slot: q.spec for slot, q in named_slots(model)}
    with torch.no_grad():
        model.encoder.layers[0].attention.query.weight.fill_(float("nan"))
    with pytest.raises(CalibrationError, match="NaN"):
        apply_specs(model, specs)
    assert modules_of(model) == before
    assert [q.mode for _, q in quantizers(model)] == modes


def test_recipe_by_name_by_path_and_as_an_object() -> None:
    for given in ("linear", presets()["linear"], str(presets()["linear"]), load_recipe("linear")):
        assert layer_slots(quantize(tiny(), given)) == (12, 10)
    with pytest.raises(RecipeError, match="no recipe 'lineal'"):
        quantize(tiny(), "lineal")


def test_what_no_call_reaches_stays_as_it_is() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    model = build(configure("realm", vocab_size=30, max_position_embeddings=20, **sizes), "scoring")
    heads = [name for name, _ in model.named_modules(remove_duplicate=False) if name.endswith("predictions.decoder")]
    assert len(heads) == 2  # two names of one module
    quantize(model, "onnxruntime")
    assert not [slot for slot in slots(model) if "predictions" in slot.module]
    assert {type(model.get_submodule(name)) for name in heads} == {nn.Linear}
