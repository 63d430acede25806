"""Group slots that are measured together, and find the patterns that name a group in a recipe."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from qdq.errors import CalibrationError, RecipeError
from qdq.quantization.wrap import named_slots

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import nn

    from qdq.quantization.quantizer import Quantizer
    from qdq.quantization.slot import Slot

__all__ = ["GROUPINGS", "Group", "group_slots"]


@dataclass(frozen=True)
class Group:
    """Slots that are quantized together or left in float together.

    Args:
        name: A readable name, such as ``encoder.layers.0.attention.{query,key,value}``.
        slots: The slots, all of which have a spec.
        quantizers: Their quantizers, each once. No other group has one of them.
        exclude: The fewest patterns for ``--exclude`` that match these slots and no other quantized one.
    """

    name: str
    slots: tuple[Slot, ...]
    quantizers: frozenset[Quantizer]
    exclude: tuple[str, ...]


def _layer(slot: Slot) -> str:
    """Return the name up to the number of the layer; outside of layers the first word: ``embeddings``, ``head``."""
    counted = re.match(r"(.*?\blayers\.\d+)(\.|$)", slot.module)
    return counted[1] if counted else slot.module.partition(".")[0]


GROUPINGS: dict[str, Callable[[Slot], str]] = {
    "slot": str,
    "module": lambda slot: slot.module,
    "layer": _layer,
    "role": lambda slot: _with_star(slot.module),
    "kind": lambda slot: f"{slot.kind}.{slot.name}",
}
"""Ways to group slots: each alone, by module, by layer, by the role of a module in any layer, by the kind of slot."""


def group_slots(model: nn.Module, by: str = "module", *, only: Sequence[str] = ()) -> list[Group]:
    """Return the quantized slots of a wrapped model in groups, in the order of the model.

    Slots that share a quantizer (query, key and value, which read one tensor; a tied weight) cannot be separated.
    Groups that share one are merged.

    Args:
        model: A calibrated model.
        by: One of :data:`GROUPINGS`.
        only: Patterns of modules or slots, as in recipes. Groups without a matching slot are left out.

    Raises:
        CalibrationError: The model has no quantized slots.
        RecipeError: Patterns match none of them; all such patterns are named.
    """
    quantized = {slot: quantizer for slot, quantizer in named_slots(model) if quantizer.spec is not None}
    if not quantized:
        raise CalibrationError("the model has no quantized slots; calibrate it first, with a recipe that has some")
    if unknown := [pattern for pattern in only if not any(_matches(slot, pattern) for slot in quantized)]:
        examples = ", ".join(map(str, list(quantized)[:3]))
        raise RecipeError(
            f"{', '.join(map(repr, unknown))} matches no quantized slot or module; their names look like {examples}",
        )
    found = []
    for names, members in _merge_sharing(quantized, GROUPINGS[by]):
        if not only or any(_matches(slot, pattern) for slot in members for pattern in only):
            quantizers = frozenset(quantized[slot] for slot in members)
            found.append(Group(_join_names(names), members, quantizers, _exclude_patterns(members, list(quantized))))
    return found


def _merge_sharing(
    quantized: dict[Slot, Quantizer], key: Callable[[Slot], str]
) -> list[tuple[tuple[str, ...], tuple[Slot, ...]]]:
    """Return the names and the slots of the groups, after merging groups that share a quantizer (union-find)."""
    # Each name points to another name of its group, up to the leader, which points to itself.
    leader: dict[str, str] = {}

    def find(name: str) -> str:
        while leader.setdefault(name, name) != name:
            name = leader[name]
        return name

    first: dict[Quantizer, str] = {}
    for slot, quantizer in quantized.items():
        leader[find(key(slot))] = find(first.setdefault(quantizer, key(slot)))
    members: dict[str, list[Slot]] = {}
    for slot in quantized:
        members.setdefault(find(key(slot)), []).append(slot)
    return [(tuple(dict.fromkeys(map(key, slots))), tuple(slots)) for slots in members.values()]


def _join_names(names: Sequence[str]) -> str:
    """Return one name for several: ``a.{x,y}.b`` if they differ in one word, else all of them."""
    if len(names) == 1:
        return names[0]
    words = [name.split(".") for name in names]
    if len({len(each) for each in words}) == 1:
        columns = [list(dict.fromkeys(column)) for column in zip(*words, strict=True)]
        if sum(len(column) > 1 for column in columns) == 1:
            return ".".join(column[0] if len(column) == 1 else f"{{{','.join(column)}}}" for column in columns)
    return " + ".join(names)


def _exclude_patterns(members: Sequence[Slot], quantized: Sequence[Slot]) -> tuple[str, ...]:
    """Return the fewest patterns that match ``members`` and no other slot; of equally few, the most specific ones."""
    # The candidates are ordered from the most to the least specific ones, because min takes the first of equally few.
    wanted = set(members)
    candidates = [
        dict.fromkeys(str(slot) for slot in members),
        dict.fromkeys(slot.module for slot in members),
        dict.fromkeys(f"{_layer(slot)}.*" for slot in members),
        dict.fromkeys(_with_star(slot.module) for slot in members),
        dict.fromkeys(_with_star(str(slot)) for slot in members),
    ]
    exact = [
        tuple(patterns)
        for patterns in candidates
        if {slot for slot in quantized if any(_matches(slot, pattern) for pattern in patterns)} == wanted
    ]
    return min(exact, key=len)


def _with_star(name: str) -> str:
    """Return a name with its numbers replaced by stars: the pattern of the same module in all layers."""
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _matches(slot: Slot, pattern: str) -> bool:
    """Return whether a pattern names the module or the slot, as ``exclude`` in a recipe does."""
    return fnmatchcase(slot.module, pattern) or fnmatchcase(str(slot), pattern)
