"""Recipes from recipes: what is off, what is on again, and that plain rules say the same."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from qdq.errors import RecipeError
from qdq.models.registry import configure
from qdq.quantization.spec import PerAxis, PerTensor, QuantSpec
from qdq.quantization.wrap import slots
from qdq.recipes.edits import per_tensor_weights, switch_slots
from qdq.recipes.plan import skeleton
from qdq.recipes.recipe import Recipe, load_recipe

SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2}
SLOTS = slots(skeleton(configure("bert", num_hidden_layers=12, **SIZES)))
BASE = load_recipe("qdqbert")
LINEARS = 6 * 2 * 12
ALL = 20 * 12


def quantized(recipe: Recipe) -> set[str]:
    return {str(slot) for slot, spec in recipe.assign(SLOTS).items() if spec is not None}


def switched(**options: Any) -> set[str]:
    return quantized(switch_slots(BASE, SLOTS, **options))


def test_nothing_asked_nothing_changed() -> None:
    assert switch_slots(BASE, SLOTS) == BASE


def test_all_off() -> None:
    assert switched(disable=True) == set()


@pytest.mark.parametrize(
    ("keywords", "count"),
    [
        (["query"], ALL - 2 * 12),
        (["attention", "pooler"], 12 * (4 + 2)),
        (["weight_quantizer"], ALL - 6 * 12),
        (["layers.3."], ALL - 20),
        (["embeddings"], ALL),
        ([""], 0),
    ],
)
def test_keywords_are_off_wherever_they_occur(keywords: list[str], count: int) -> None:
    got = switched(disable_keywords=keywords)
    assert len(got) == count
    assert got == {name for name in quantized(BASE) if not any(keyword in f"{name}_quantizer" for keyword in keywords)}


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        (r"attention\.\S+", r"attention\..*"),
        (r"attention", r"attention.*"),
        ("query", None),
        (r".*query", r".*query.*"),
        (r"layer.\d+.feed_forward", r"feed_forward.*"),
        (r"layers\.(0|11)\..*add", r"^(0|11)\..*add.*"),
        (r"attention\.(scores|context)\.other", r"attention\.(scores|context)\.other"),
    ],
)
def test_layer_modules_are_named_below_their_layer(expression: str, expected: str | None) -> None:
    if expected is None:
        with pytest.raises(RecipeError, match=f"disable layer module {expression!r} matches nothing"):
            switched(disable_layer_modules=[expression])
        return
    below = {name: name.removeprefix("encoder.layers.") for name in quantized(BASE)}
    numbered = expected.startswith("^")
    off = {name for name, rest in below.items() if re.fullmatch(expected, rest if numbered else rest.partition(".")[2])}
    assert 0 < len(off) < ALL
    assert switched(disable_layer_modules=[expression]) == quantized(BASE) - off


def test_on_again_has_the_last_word_and_the_old_spec() -> None:
    recipe = switch_slots(BASE, SLOTS, disable=True, enable_layer_modules=["feed_forward"])
    assert quantized(recipe) == {name for name in quantized(BASE) if "feed_forward" in name}
    before, after = BASE.assign(SLOTS), recipe.assign(SLOTS)
    assert all(after[slot] == before[slot] for slot in SLOTS if after[slot] is not None)
    again = switched(disable_keywords=["attention"], enable_layer_modules=[r"attention\.query\.weight"])
    assert {name for name in again if "attention" in name} == {
        f"encoder.layers.{n}.attention.query.weight" for n in range(12)
    }


def test_what_was_never_on_stays_off() -> None:
    linear = load_recipe("linear").restrict(exclude=["encoder.layers.0.*"])
    recipe = switch_slots(linear, SLOTS, disable=True, enable_layer_modules=[".*"])
    assert quantized(recipe) == quantized(linear)
    assert len(quantized(recipe)) == LINEARS - 12


def test_the_rules_are_few_and_survive_json() -> None:
    recipe = switch_slots(BASE, SLOTS, disable_keywords=["attention.query", "add"], disable_layer_modules=["layer.5."])
    assert len(recipe.rules) < len(BASE.rules) + 6 + 20
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
    assert "encoder.layers.*.attention.query" in {rule.module for rule in recipe.rules}


def test_all_mistakes_at_once() -> None:
    with pytest.raises(RecipeError) as caught:
        switched(
            disable_keywords=["qery", "("], disable_layer_modules=["attention.self"], enable_layer_modules=["pooler"]
        )
    text = str(caught.value)
    assert "4 problems" in text
    for part in (
        "keyword 'qery' matches nothing",
        "keyword '(' is not a regular expression",
        "'attention.self'",
        "'pooler'",
    ):
        assert part in text
    assert "encoder.layers.0.attention.query.input_quantizer" in text


def test_weights_per_tensor_and_nothing_else() -> None:
    for name in ("onnxruntime", "qdqbert", "dynamic", "weight-only-int4"):
        before = load_recipe(name).assign(SLOTS)
        after = per_tensor_weights(load_recipe(name)).assign(SLOTS)
        for slot, spec in before.items():
            new = after[slot]
            if spec is None or slot.name != "weight":
                assert new == spec
            else:
                assert new is not None
                assert (new.granularity, new.overflow_safe) == (PerTensor(), False)
                assert (new.bits, new.signed, new.symmetric) == (spec.bits, spec.signed, spec.symmetric)
    assert QuantSpec(granularity=PerAxis(0)) in load_recipe("linear").assign(SLOTS).values()
