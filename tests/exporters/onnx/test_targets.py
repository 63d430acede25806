from __future__ import annotations

from typing import Any

import pytest

from exporters.onnx.targets import TARGETS, target_named
from qdq.errors import ExportError
from qdq.quantization.slot import Slot
from qdq.quantization.spec import PerAxis, QuantSpec
from qdq.recipes.recipe import load_recipe, presets

LINEAR = Slot("encoder.layers.0.attention.query", "linear", "input")
TABLE = Slot("embeddings.word", "embedding", "weight")


@pytest.mark.parametrize("name", TARGETS)
def test_a_target_can_run_its_own_recipe(name: str) -> None:
    target = TARGETS[name]
    assert target.name == name
    rules = load_recipe(target.recipe).rules
    specs = {Slot("m", rule.kind or "linear", "input" if rule.slot == "*" else rule.slot): rule.spec for rule in rules}
    assert len(specs) >= 2
    assert target.problems(specs) == []


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("recipe", presets())
def test_cpu_targets_run_every_preset(name: str, recipe: str) -> None:
    specs = {
        Slot(f"m{n}", rule.kind or "linear", rule.slot): rule.spec for n, rule in enumerate(load_recipe(recipe).rules)
    }
    problems = TARGETS[name].problems(specs)
    if recipe == "fp8":
        assert len(problems) == 2
        assert all("have no float8" in problem and f"--recipe {name}" in problem for problem in problems)
    elif (name, recipe) == ("openvino", "dynamic"):
        assert len(problems) == 2  # of the encoder's linear layers, and of a decoder
        assert all("takes static ranges" in problem for problem in problems)
    else:
        assert problems == []


@pytest.mark.parametrize(
    ("slot", "settings", "words"),
    [
        (LINEAR, {"signed": False}, "uint8 symmetric per-tensor"),
        (LINEAR, {"symmetric": False}, "int8 affine per-tensor"),
        (LINEAR, {"bits": 4}, "int4 symmetric per-tensor"),
        (LINEAR, {"narrow_range": True}, "narrow-range"),
        (TABLE, {"granularity": PerAxis(0)}, "tables"),
    ],
    ids=lambda value: None if isinstance(value, Slot) else str(value),
)
def test_tensorrt_says_why_it_refuses_a_slot(slot: Slot, settings: dict[str, Any], words: str) -> None:
    (problem,) = TARGETS["tensorrt"].problems({slot: QuantSpec(**settings), Slot("pooler", "linear", "input"): None})
    assert problem.startswith(f"{slot}: ")
    assert words in problem


def test_tensorrt_takes_weights_that_are_overflow_safe() -> None:
    spec = QuantSpec(granularity=PerAxis(0), overflow_safe=True)
    assert TARGETS["tensorrt"].problems({Slot("m", "linear", "weight"): spec}) == []


def test_an_unknown_target_is_answered_with_those_there_are() -> None:
    with pytest.raises(ExportError, match="no target 'onnx': it must be one of onnxruntime, openvino, tensorrt"):
        target_named("onnx")


def test_passes_are_made_afresh() -> None:
    for target in TARGETS.values():
        first, second = target.passes(), target.passes()
        assert len(first) == len(second) > 0
        assert not any(one is other for one, other in zip(first, second, strict=True))
