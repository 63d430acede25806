"""What a recipe means for a model, before anything is loaded or computed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qdq.models.registry import construct
from qdq.quantization.wrap import check_specs, same_tensor, slots, wrap

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from torch import nn

    from qdq.models.config import ModelConfig
    from qdq.models.model import Model
    from qdq.quantization.slot import Slot
    from qdq.quantization.spec import QuantSpec
    from qdq.recipes.recipe import Recipe

__all__ = ["Plan", "needing_data", "plan", "skeleton"]


@dataclass(frozen=True)
class Plan:
    """Which slots get which spec.

    Args:
        recipe: that was planned.
        specs: of every slot of the model in the order of its modules, None for those that stay float.
        quantizers: how many there will be for each spec: slots that read one tensor share one.
    """

    recipe: Recipe
    specs: Mapping[Slot, QuantSpec | None]
    quantizers: Mapping[QuantSpec, int]

    @property
    def places(self) -> Counter[QuantSpec]:
        """How many slots get each spec."""
        return Counter(spec for spec in self.specs.values() if spec is not None)

    @property
    def needing_data(self) -> list[Slot]:
        """The slots that calibration has to find a range for; none, and no data is needed."""
        return needing_data(self.specs)


def needing_data(specs: Mapping[Slot, QuantSpec | None]) -> list[Slot]:
    """The slots whose ranges only data can tell: neither weights nor dynamic nor float."""
    return [slot for slot, spec in specs.items() if spec is not None and slot.name != "weight" and not spec.dynamic]


def skeleton(config: ModelConfig, task: str | None = None) -> Model:
    """The wrapped model of ``config`` on the meta device, every slot empty: names and shapes, and no weights.

    Raises:
        ConfigError: for a task that the family does not have.
    """
    model = construct(config, task)
    wrap(model)
    return model


def plan(model: nn.Module, recipe: Recipe) -> Plan:
    """What ``recipe`` gives to the slots of a wrapped model, on the meta device or any other; nothing is changed.

    Raises:
        RecipeError: for a recipe that names slots this model does not have, or gives a slot a spec it cannot have.
    """
    specs = recipe.assign(slots(model))
    check_specs(model, specs)
    shared = (dict.fromkeys(specs[slot] for slot in group) for group in same_tensor(model, list(specs)))
    return Plan(recipe, specs, Counter(_given(spec for group in shared for spec in group)))


def _given(specs: Iterable[QuantSpec | None]) -> list[QuantSpec]:
    return [spec for spec in specs if spec is not None]
