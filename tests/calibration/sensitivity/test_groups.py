"""Groups of slots: every slot in one of them, quantizers in one only, and patterns that mean what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from calibration.sensitivity.groups import GROUPINGS, group_slots
from qdq.analysis.settings import GROUPING_NAMES
from qdq.errors import CalibrationError, RecipeError
from qdq.models.registry import build, configure
from qdq.quantization.wrap import named_slots, slots
from qdq.recipes.apply import quantize
from qdq.recipes.recipe import load_recipe

if TYPE_CHECKING:
    from qdq.models.model import Model

SMALL: dict[str, Any] = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 20,
}
CASES = [
    pytest.param("onnxruntime", "bert", id="onnxruntime-bert"),
    *(pytest.param("qdqbert", family, id=f"qdqbert-{family}") for family in ("bert", "albert", "megatron-bert")),
]


def wrapped(preset: str = "onnxruntime", family: str = "bert", task: str = "feature-extraction") -> Model:
    model = build(configure(family, **SMALL), task)
    quantize(model, preset)
    return model


def test_the_settings_know_every_grouping() -> None:
    assert tuple(GROUPINGS) == GROUPING_NAMES


@pytest.mark.parametrize("by", GROUPINGS)
@pytest.mark.parametrize(("preset", "family"), CASES)
def test_every_quantized_slot_is_in_one_group(preset: str, family: str, by: str) -> None:
    model = wrapped(preset, family)
    quantized = {slot: quantizer for slot, quantizer in named_slots(model) if quantizer.spec is not None}
    found = group_slots(model, by)
    assert sorted(str(slot) for group in found for slot in group.slots) == sorted(map(str, quantized))
    assert sum(len(group.quantizers) for group in found) == len(set(quantized.values()))
    assert len({group.name for group in found}) == len(found)


@pytest.mark.parametrize("by", GROUPINGS)
@pytest.mark.parametrize(("preset", "family"), CASES)
def test_the_patterns_exclude_just_the_group(preset: str, family: str, by: str) -> None:
    model = wrapped(preset, family)
    recipe = load_recipe(preset)
    before = {slot for slot, spec in recipe.assign(slots(model)).items() if spec is not None}
    for group in group_slots(model, by):
        specs = recipe.restrict(exclude=group.exclude).assign(slots(model))
        assert before - {slot for slot, spec in specs.items() if spec is not None} == set(group.slots)


def test_names_and_patterns() -> None:
    model = wrapped()
    named = {by: {group.name: group.exclude for group in group_slots(model, by)} for by in GROUPINGS}
    query = "encoder.layers.0.attention"
    assert named["slot"][f"{query}.{{query,key,value}}.input"] == tuple(
        f"{query}.{name}.input" for name in ("query", "key", "value")
    )
    assert named["slot"]["encoder.layers.1.feed_forward.up.weight"] == ("encoder.layers.1.feed_forward.up.weight",)
    assert named["module"]["encoder.layers.2.feed_forward.down"] == ("encoder.layers.2.feed_forward.down",)
    assert list(named["layer"]) == ["embeddings", *(f"encoder.layers.{n}" for n in range(3))]
    assert named["layer"]["encoder.layers.1"] == ("encoder.layers.1.*",)
    assert named["role"]["encoder.layers.*.feed_forward.down"] == ("encoder.layers.*.feed_forward.down",)
    assert list(named["kind"]) == ["embedding.weight", "linear.input", "linear.weight"]
    assert named["kind"]["embedding.weight"] == ("embeddings.*",)


def test_query_key_and_value_are_switched_together() -> None:
    (group,) = group_slots(wrapped("linear"), "module", only=["encoder.layers.1.attention.key"])
    assert group.name == "encoder.layers.1.attention.{query,key,value}"
    assert len(group.slots) == 6
    assert len(group.quantizers) == 4  # one input, three weights


def test_weights_that_depths_share_are_switched_together() -> None:
    names = [group.name for group in group_slots(wrapped("linear", "albert"), "layer")]
    assert names == ["encoder.layers.{0,1,2}"]


def test_only_some() -> None:
    model = wrapped()
    found = group_slots(model, "slot", only=["encoder.layers.0.feed_forward.*", "embeddings.word"])
    assert [group.name for group in found] == [
        "embeddings.word.weight",
        *(f"encoder.layers.0.feed_forward.{name}" for name in ("up.input", "up.weight", "down.input", "down.weight")),
    ]


def test_patterns_that_match_nothing_are_named_together() -> None:
    with pytest.raises(RecipeError) as caught:
        group_slots(wrapped(), only=["encoder.layers.7.*", "embeddings.*", "pooler"])
    assert "'encoder.layers.7.*', 'pooler'" in str(caught.value)
    assert "'embeddings.*'" not in str(caught.value)


def test_a_float_model_is_refused() -> None:
    with pytest.raises(CalibrationError, match="no quantized slots"):
        group_slots(build(configure("bert", **SMALL)))
