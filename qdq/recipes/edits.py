"""Change recipes as the options of NVIDIA's quantization trainer for BERT do.

Expressions match the names of slots in this package, with the ending ``_quantizer``
(``encoder.layers.0.attention.query.input_quantizer``). A layer may also be spelled ``layer.0``.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

from qdq.errors import RecipeError, describe_problems
from qdq.quantization.spec import PerTensor, PerToken
from qdq.recipes.recipe import Recipe, Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from qdq.quantization.slot import Slot

__all__ = ["per_tensor_weights", "switch_slots"]

_LAYER = re.compile(r"\blayers\.(\d+)\.(.*)")


def per_tensor_weights(recipe: Recipe) -> Recipe:
    """Return ``recipe`` with one scale for each weight, where it has one for each channel or group.

    ``overflow_safe`` is switched off, because it only exists for scales of channels.
    """
    rules = []
    for rule in recipe.rules:
        spec = rule.spec
        if rule.slot in ("weight", "*") and spec is not None and not isinstance(spec.granularity, PerTensor | PerToken):
            spec = replace(spec, granularity=PerTensor(), overflow_safe=False)
        rules.append(replace(rule, spec=spec))
    return replace(recipe, rules=tuple(rules))


def switch_slots(
    recipe: Recipe,
    slots: Iterable[Slot],
    *,
    disable: bool = False,
    disable_keywords: Sequence[str] = (),
    disable_layer_modules: Sequence[str] = (),
    enable_layer_modules: Sequence[str] = (),
) -> Recipe:
    r"""Return ``recipe`` with some slots switched off, and some of those on again with the specs they had.

    The options apply in this order. All expressions are regular expressions.

    Args:
        recipe: The recipe to change.
        slots: All slots of the model that it is for.
        disable: Switch all slots off.
        disable_keywords: Switch off the slots whose names contain a match of one of these, often plain words.
        disable_layer_modules: Switch off the slots whose names inside a layer begin with a match of one of these:
            ``attention\.\S+`` matches ``layers.N.attention.query`` and all other slots of attention.
        enable_layer_modules: Switch on again the slots whose names inside a layer begin with a match of one of these.

    Returns:
        The recipe with further rules at its end.

    Raises:
        RecipeError: Expressions are invalid or match nothing; all of them are named. Also as for ``Recipe.assign``.
    """
    slots = list(slots)
    before = recipe.assign(slots)
    problems: list[str] = []

    def found(option: str, texts: Sequence[str], match: Callable[[re.Pattern[str], Slot], bool]) -> set[Slot]:
        result: set[Slot] = set()
        for text in texts:
            try:
                pattern = re.compile(text)
            except re.error as error:
                problems.append(f"{option} {text!r} is not a regular expression: {error}")
                continue
            matched = {slot for slot in slots if match(pattern, slot)}
            if not matched:
                problems.append(f"{option} {text!r} matches nothing; names are like {_example(slots)}")
            result |= matched
        return result

    # All expressions are evaluated before the first error, so that all mistakes are reported.
    off = set(slots) if disable else set()
    off |= found("disable keyword", disable_keywords, lambda pattern, slot: bool(pattern.search(_name(slot))))
    off |= found("disable layer module", disable_layer_modules, _is_in_layer)
    on = found("enable layer module", enable_layer_modules, _is_in_layer)
    if problems:
        raise RecipeError(describe_problems(f"recipe {recipe.name!r}", problems))
    switched = {slot: before[slot] if slot in on or slot not in off else None for slot in slots}
    rules = list(recipe.rules)
    now = before
    if disable:
        rules.append(Rule(module="*", slot="*", spec=None))
        now = dict.fromkeys(slots)
    for slot in slots:
        if now[slot] != switched[slot]:
            rule = _for_all_layers(
                slot, Rule(module=slot.module, kind=slot.kind, slot=slot.name, spec=switched[slot]), slots
            )
            # Keep the rule to this layer if other layers want something else.
            wrong = [other for other in slots if rule.matches(other) and switched[other] != rule.spec]
            rule = replace(rule, module=slot.module) if wrong else rule
            rules.append(rule)
            now = {other: rule.spec if rule.matches(other) else spec for other, spec in now.items()}
    return replace(recipe, rules=tuple(rules))


def _name(slot: Slot) -> str:
    return f"{slot}_quantizer"


def _is_in_layer(pattern: re.Pattern[str], slot: Slot) -> bool:
    layer = _LAYER.search(_name(slot))
    if layer is None:
        return False
    number, below = layer.groups()
    return any(pattern.match(name) for name in (below, f"layers.{number}.{below}", f"layer.{number}.{below}"))


def _for_all_layers(slot: Slot, rule: Rule, slots: Sequence[Slot]) -> Rule:
    """Return the rule for the same module of every layer, if there are several layers."""
    every = replace(rule, module=re.sub(r"\blayers\.\d+\.", "layers.*.", slot.module))
    return every if sum(map(every.matches, slots)) > 1 else rule


def _example(slots: Sequence[Slot]) -> str:
    first = next((slot for slot in slots if _LAYER.search(slot.module)), slots[0])
    return _name(first)
