"""``qdq inspect --recipe``: which slot gets which spec, without loading or computing anything."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from qdq.cli.tables import new_table

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from rich.table import Table

    from qdq.cli.recipe_options import RecipeChoice
    from qdq.recipes.plan import Plan
    from qdq.source import ModelDirectory

__all__ = ["described", "planned", "shown", "whole_layers"]

_LAYER = re.compile(r"\blayers\.([0-9]+)\.")


def planned(
    given: Path | ModelDirectory, choice: RecipeChoice | None, task: str | None
) -> tuple[dict[str, Any], Plan | None]:
    """Return a description of the model of a directory or a config.json, and the plan of a recipe for it.

    Raises:
        ConfigError: The configuration is not supported.
        RecipeError: The recipe does not fit the model.
    """
    from qdq.models.huggingface import read_config
    from qdq.recipes.plan import skeleton

    if isinstance(given, Path):
        model = skeleton(read_config(given), task)
    else:
        model = skeleton(given.config, task, with_pooler=given.has_pooler)
    document = {
        "model_type": model.config.model_type,
        "task": model.task,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
    }
    return document, None if choice is None else choice.plan(model)


def described(plan: Plan) -> dict[str, Any]:
    """Return a plan as plain values."""
    counts = plan.slot_counts
    kinds: dict[str, dict[str, dict[str, int]]] = {}
    for slot, spec in plan.specs.items():
        count = kinds.setdefault(slot.kind, {}).setdefault(slot.name, {"places": 0, "quantized": 0})
        count["places"] += 1
        count["quantized"] += spec is not None
    return {
        "recipe": plan.recipe.name,
        "places": len(plan.specs),
        "quantized": sum(counts.values()),
        "quantizers": sum(plan.quantizers.values()),
        "needing_data": len(plan.needing_data),
        "specs": [
            {"spec": str(spec), "places": count, "quantizers": plan.quantizers[spec]}
            for spec, count in counts.most_common()
        ],
        "kinds": kinds,
        "slots": [
            {"slot": str(slot), "kind": slot.kind, "spec": None if spec is None else str(spec)}
            for slot, spec in plan.specs.items()
        ],
    }


def shown(plan: Mapping[str, Any]) -> list[Table | str]:
    """Return a plan as people read it: counts, and equal slots of several layers in one line."""
    letters = {row["spec"]: chr(ord("A") + index) for index, row in enumerate(plan["specs"])}
    specs = new_table("spec", "", "slots", "quantizers", words=2)
    for row in plan["specs"]:
        specs.add_row(letters[row["spec"]], row["spec"], str(row["places"]), str(row["quantizers"]))
    kinds = new_table("kind", "slot", "slots", "quantized", words=2)
    for kind, slots in plan["kinds"].items():
        for name, count in slots.items():
            kinds.add_row(kind, name, str(count["places"]), str(count["quantized"]))
    slots_ = new_table("slot", "spec", "layers", words=3)
    for name, spec, layers in whole_layers((row["slot"], row["spec"]) for row in plan["slots"]):
        slots_.add_row(name, letters.get(spec or "", "float"), layers)
    counts: list[Table | str] = ["", specs] if plan["specs"] else []
    data = f"{plan['needing_data']} slots need calibration data" if plan["needing_data"] else "no data is needed"
    return [
        f"{plan['quantized']} of {plan['places']} slots quantized, {plan['quantizers']} quantizers; {data}",
        *counts,
        "",
        kinds,
        "",
        slots_,
    ]


def whole_layers(slots: Iterable[tuple[str, str | None]]) -> list[tuple[str, str | None, str]]:
    """Merge slots that have the same spec and differ only in the layer.

    Returns:
        Name with N for the layer, spec, and layers as in ``0-5, 8`` (empty for slots outside of layers), in the order
        of the first slot of each.
    """
    found: dict[tuple[str, str | None], list[int]] = {}
    for name, spec in slots:
        layer = _LAYER.search(name)
        numbers = found.setdefault((_LAYER.sub("layers.N.", name, count=1), spec), [])
        if layer:
            numbers.append(int(layer[1]))
    return [(name, spec, _runs(numbers)) for (name, spec), numbers in found.items()]


def _runs(numbers: list[int]) -> str:
    """``[0, 1, 2, 5]`` -> ``0-2, 5``."""
    # Neighbors have the same distance to their position.
    runs = Counter(number - index for index, number in enumerate(numbers))
    texts, begin = [], 0
    for length in runs.values():
        first, last = numbers[begin], numbers[begin + length - 1]
        texts.append(str(first) if first == last else f"{first}-{last}")
        begin += length
    return ", ".join(texts)
