"""Slots in groups that can be switched on and off together, and the patterns that name a group in a recipe."""

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

__all__ = ["BY", "Group", "groups"]


@dataclass(frozen=True)
class Group:
    """What is switched together.

    Args:
        name: for people: ``encoder.layers.0.attention.{query,key,value}``.
        slots: all of its slots that have a spec.
        quantizers: of these slots, each once; no other group has one of them.
        exclude: the fewest patterns that ``--exclude`` takes and that mean these slots and no other quantized one.
    """

    name: str
    slots: tuple[Slot, ...]
    quantizers: frozenset[Quantizer]
    exclude: tuple[str, ...]


def _layer(slot: Slot) -> str:
    """Where layers are counted, up to the number; else the first part of the name: ``embeddings``, ``head``."""
    counted = re.match(r"(.*?\blayers\.\d+)(\.|$)", slot.module)
    return counted[1] if counted else slot.module.partition(".")[0]


BY: dict[str, Callable[[Slot], str]] = {
    "slot": str,
    "module": lambda slot: slot.module,
    "layer": _layer,
    "role": lambda slot: _starred(slot.module),
    "kind": lambda slot: f"{slot.kind}.{slot.name}",
}
"""Ways to group: by slot, module, layer, by a module's place in whichever layer, by the kind of slot."""


def groups(model: nn.Module, by: str = "module", *, only: Sequence[str] = ()) -> list[Group]:
    """The quantized slots of a wrapped model in groups, in the order of the model.

    Slots that share a quantizer (query, key and value read one tensor; a tied weight) cannot be switched apart: groups
    that share one become one.

    Args:
        model: calibrated.
        by: one of :data:`BY`.
        only: patterns of modules or slots, as recipes take them: groups without such a slot are left out.

    Raises:
        CalibrationError: for a model that has no quantized slots.
        RecipeError: for patterns that match none of them, all at once.
    """
    quantized = {slot: quantizer for slot, quantizer in named_slots(model) if quantizer.spec is not None}
    if not quantized:
        raise CalibrationError("the model has no quantized slots; calibrate it first, with a recipe that has some")
    if strange := [pattern for pattern in only if not any(_matches(slot, pattern) for slot in quantized)]:
        examples = ", ".join(map(str, list(quantized)[:3]))
        raise RecipeError(f"{', '.join(map(repr, strange))}: no quantized slot or module has such a name ({examples})")
    found = []
    for names, members in _merged(quantized, BY[by]):
        if not only or any(_matches(slot, pattern) for slot in members for pattern in only):
            switched = frozenset(quantized[slot] for slot in members)
            found.append(Group(_joined(names), members, switched, _patterns(members, list(quantized))))
    return found


def _merged(
    quantized: dict[Slot, Quantizer], key: Callable[[Slot], str]
) -> list[tuple[tuple[str, ...], tuple[Slot, ...]]]:
    """Names and slots of the groups after those that share a quantizer were made one."""
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


def _joined(names: Sequence[str]) -> str:
    """One name for several: ``a.{x,y}.b`` where that says the same, else all of them."""
    if len(names) == 1:
        return names[0]
    parts = [name.split(".") for name in names]
    if len({len(part) for part in parts}) == 1:
        columns = [list(dict.fromkeys(column)) for column in zip(*parts, strict=True)]
        if sum(len(column) > 1 for column in columns) == 1:
            return ".".join(column[0] if len(column) == 1 else f"{{{','.join(column)}}}" for column in columns)
    return " + ".join(names)


def _patterns(members: Sequence[Slot], quantized: Sequence[Slot]) -> tuple[str, ...]:
    """The fewest patterns that match ``members`` and none of the others; of equally many, those that say most."""
    wanted = set(members)
    candidates = [
        dict.fromkeys(str(slot) for slot in members),
        dict.fromkeys(slot.module for slot in members),
        dict.fromkeys(f"{_layer(slot)}.*" for slot in members),
        dict.fromkeys(_starred(slot.module) for slot in members),
        dict.fromkeys(_starred(str(slot)) for slot in members),
    ]
    exact = [
        tuple(patterns)
        for patterns in candidates
        if {slot for slot in quantized if any(_matches(slot, pattern) for pattern in patterns)} == wanted
    ]
    return min(exact, key=len)


def _starred(name: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.|$)", "*", name)


def _matches(slot: Slot, pattern: str) -> bool:
    """As ``exclude`` of a recipe does: it may name the module or the slot."""
    return fnmatchcase(slot.module, pattern) or fnmatchcase(str(slot), pattern)
