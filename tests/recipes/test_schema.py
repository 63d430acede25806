"""The schema for editors: the file that ships, the presets, and nothing refused that the reader reads."""

from __future__ import annotations

import copy
import itertools
import json
import random
from dataclasses import fields
from typing import Any

import pytest
import yaml
from jsonschema import Draft7Validator

from qdq.errors import RecipeError
from qdq.quantization.slot import KINDS, SLOTS
from qdq.quantization.spec import ARITHMETICS, QuantSpec
from qdq.recipes.recipe import Recipe, Rule, presets
from qdq.recipes.schema import SCHEMA_FILE, recipe_schema

SCHEMA = recipe_schema()
VALIDATOR = Draft7Validator(SCHEMA)
PLAIN = {name: yaml.safe_load(path.read_text(encoding="utf-8")) for name, path in presets().items()}


def is_read(values: Any) -> bool:
    try:
        Recipe.from_dict(values)
    except RecipeError:
        return False
    return True


def test_the_file_that_ships_is_up_to_date() -> None:
    Draft7Validator.check_schema(SCHEMA)
    assert json.loads(SCHEMA_FILE.read_text(encoding="utf-8")) == SCHEMA, "run python -m qdq.recipes.schema"


def test_it_knows_every_setting_and_its_default() -> None:
    settings = SCHEMA["definitions"]["spec"]["properties"]
    assert {name: settings[name]["default"] for name in settings} == QuantSpec().to_dict()
    assert list(settings) == [field.name for field in fields(QuantSpec)]
    rule = SCHEMA["definitions"]["rule"]["properties"]
    assert set(rule) == {field.name for field in fields(Rule)}
    assert set(SCHEMA["properties"]) == {field.name for field in fields(Recipe)} | {"specs"}


@pytest.mark.parametrize("name", PLAIN)
def test_presets_are_valid(name: str) -> None:
    assert list(VALIDATOR.iter_errors(PLAIN[name])) == []


@pytest.mark.parametrize("name", PLAIN)
def test_what_a_checkpoint_records_is_valid(name: str) -> None:
    assert list(VALIDATOR.iter_errors(Recipe.from_dict(PLAIN[name]).to_dict())) == []


def test_every_combination_of_settings_is_judged_as_the_reader_does() -> None:
    """Not only one way: of specs the schema knows all there is to know."""
    granularities = ("per-tensor", "per-axis(0)", "per-axis(1)", "per-group(32)", "per-token")
    flags = ("signed", "symmetric", "narrow_range", "overflow_safe", "dynamic", "learned_scale")
    spec = Draft7Validator({**SCHEMA["definitions"]["spec"]})
    valid = 0
    for granularity, arithmetic, *values in itertools.product(
        granularities, ARITHMETICS, *[(False, True)] * len(flags)
    ):
        settings = {"granularity": granularity, "arithmetic": arithmetic, **dict(zip(flags, values, strict=True))}
        # The one thing that only the reader can say: which axis overflow_safe takes.
        expected = not QuantSpec.problems_in(settings) or (
            settings["overflow_safe"]
            and granularity == "per-axis(1)"
            and not QuantSpec.problems_in({**settings, "granularity": "per-axis(0)"})
        )
        assert spec.is_valid(settings) == expected, settings
        valid += expected
    assert 100 < valid < 500


WEIRD: list[Any] = [
    None,
    True,
    False,
    0,
    1,
    3,
    9,
    -1,
    2.5,
    "",
    "off",
    "*",
    "per-axis(1)",
    "per-group(0)",
    "per-token",
    [],
    {},
]
WEIRD += [
    "per-axis(0)",
    "per-group(16)",
    ["linear", "add"],
    ["conv"],
    [1],
    {"bits": 4},
    {"bitz": 4},
    *KINDS,
    *SLOTS,
    *ARITHMETICS,
]
KEYS = [
    *(field.name for field in fields(QuantSpec)),
    "module",
    "kind",
    "slot",
    "spec",
    "rules",
    "include",
    "exclude",
    "x",
]


def mutated(values: Any, rng: random.Random) -> Any:
    """One to three changes anywhere: another value, a key more, a key less."""
    values = copy.deepcopy(values)
    for _ in range(rng.randint(1, 3)):
        containers: list[Any] = [values]
        for container in containers:
            inner = container.values() if isinstance(container, dict) else container
            containers += [item for item in inner if isinstance(item, dict | list)]
        container = rng.choice(containers)
        if isinstance(container, list):
            index = rng.randrange(len(container) + 1)
            container[index : index + rng.randint(0, 1)] = [copy.deepcopy(rng.choice(WEIRD))] * rng.randint(0, 1)
            continue
        key = rng.choice([*container, rng.choice(KEYS)])
        if rng.random() < 0.2:
            container.pop(key, None)
        else:
            container[key] = copy.deepcopy(rng.choice(WEIRD))
    return values


def test_what_the_schema_refuses_the_reader_refuses() -> None:
    rng = random.Random(0)
    counts = dict.fromkeys(itertools.product((False, True), repeat=2), 0)
    for _ in range(1500):
        values = mutated(PLAIN[rng.choice(list(PLAIN))], rng)
        valid, read = VALIDATOR.is_valid(values), is_read(values)
        assert valid or not read, values
        counts[valid, read] += 1
    assert counts[False, False] > 300
    assert counts[True, True] > 100
    assert counts[True, False] < counts[False, False] / 4, "few mistakes are left to the reader"
