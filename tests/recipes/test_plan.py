"""Plans against what quantize() really does."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
import torch

from qdq.errors import CalibrationError, ConfigError, RecipeError
from qdq.models.registry import build, configure
from qdq.quantization.quantizer import Mode, quantizers, set_mode
from qdq.quantization.spec import PerAxis, PerGroup, QuantSpec
from qdq.quantization.wrap import named_slots
from qdq.recipes.apply import quantize
from qdq.recipes.plan import plan, skeleton
from qdq.recipes.recipe import Recipe, Rule, load_recipe, presets

if TYPE_CHECKING:
    from qdq.models.config import ModelConfig

SIZES = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_hidden_layers": 3}
FREE = {"dynamic", "weight-only-int8", "weight-only-int4"}


def config(family: str = "bert", **changes: Any) -> ModelConfig:
    return configure(family, **{**SIZES, "max_position_embeddings": 16, **changes})


@pytest.mark.parametrize("preset", list(presets()))
@pytest.mark.parametrize(
    ("family", "task", "changes"),
    [
        ("bert", "feature-extraction", {}),
        ("bert", "masked-lm", {}),
        ("albert", "sequence-classification", {"embedding_size": 8}),
        ("roberta-prelayernorm", "causal-lm", {"is_decoder": True, "add_cross_attention": True}),
    ],
)
def test_a_plan_is_what_quantize_does(preset: str, family: str, task: str, changes: dict[str, Any]) -> None:
    settings, recipe = config(family, **changes), load_recipe(preset)
    planned = plan(skeleton(settings, task), recipe)
    model = quantize(build(settings, task), recipe)
    assert dict(planned.specs) == {slot: quantizer.spec for slot, quantizer in named_slots(model)}
    assert list(planned.specs) == [slot for slot, _ in named_slots(model)]
    assert planned.quantizers == Counter(q.spec for _, q in quantizers(model) if q.spec is not None)
    missing = {str(slot) for slot, q in named_slots(model) if not q.is_calibrated}
    assert {str(slot) for slot in planned.needing_data} == missing
    assert (not missing) == (preset in FREE)


def test_the_numbers_of_qdqbert() -> None:
    """Twenty slots in each layer, of which query, key and value share one quantizer."""
    planned = plan(skeleton(configure("bert")), load_recipe("qdqbert"))
    assert sum(planned.slot_counts.values()) == 240
    assert sum(planned.quantizers.values()) == 216
    assert planned.slot_counts == {QuantSpec(granularity=PerAxis(0)): 72, QuantSpec(): 168}


def test_nothing_is_loaded_and_nothing_is_changed() -> None:
    model = skeleton(configure("bert"), "masked-lm")
    plan(model, load_recipe("tensorrt"))
    assert all(parameter.is_meta for parameter in model.parameters())
    assert all(quantizer.spec is None for _, quantizer in quantizers(model))


@pytest.mark.parametrize("preset", sorted(FREE))
def test_what_needs_no_data_quantizes_at_once(preset: str) -> None:
    torch.manual_seed(0)
    model = build(config(initializer_range=0.3)).eval()
    inputs = {"input_ids": torch.randint(1, 40, (2, 9))}
    with torch.no_grad():
        expected = model(**inputs)[0]
        set_mode(quantize(model, preset), Mode.QUANTIZE)
        found = model(**inputs)[0]
    assert not torch.equal(found, expected)
    cosine = torch.cosine_similarity(found.flatten(), expected.flatten(), dim=0)
    assert cosine > (0.95 if preset.endswith("int4") else 0.999)


def test_what_needs_data_does_not() -> None:
    with pytest.raises(CalibrationError, match=r"not calibrated"):
        set_mode(quantize(build(config()), "onnxruntime"), Mode.QUANTIZE)


def test_specs_that_slots_cannot_have_are_told_before_anything_is_loaded() -> None:
    rule = Rule(module="encoder.*", kind="linear", slot="*", spec=QuantSpec(granularity=PerAxis(2)))
    with pytest.raises(RecipeError) as caught:
        plan(skeleton(config()), Recipe(name="wrong", rules=(rule,)))
    assert "query.input: per-axis(2) is for weights" in str(caught.value)
    assert "query.weight: per-axis(2) does not exist in a weight of shape (16, 16)" in str(caught.value)


def test_a_group_larger_than_any_weight_is_one_group() -> None:
    torch.manual_seed(0)
    models = []
    for granularity in (PerAxis(0), PerGroup(999_999_999)):
        rule = Rule(module="encoder.*", kind="linear", slot="weight", spec=QuantSpec(bits=4, granularity=granularity))
        model = quantize(build(config(initializer_range=0.3)).eval(), Recipe(name="one", rules=(rule,)))
        models.append(model)
    one, other = (dict(quantizers(model))["encoder.layers.0.feed_forward.up.weight_quantizer"] for model in models)
    x = torch.randn(32, 16)
    other.scale.copy_(one.scale[:, None])
    set_mode(models[0], Mode.QUANTIZE)
    set_mode(models[1], Mode.QUANTIZE)
    assert other.scale.shape == (32, 1)
    assert torch.equal(one(x), other(x))


def test_a_task_that_is_none() -> None:
    with pytest.raises(ConfigError, match="translation"):
        skeleton(config(), "translation")
