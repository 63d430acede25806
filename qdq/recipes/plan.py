"""Tell what a recipe does to a model before weights are loaded or anything is computed."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from qdq.models.registry import construct
from qdq.models.weights import leave_out_pooler
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
    """Which slots of a model get which spec.

    Args:
        recipe: The recipe.
        specs: The spec of every slot, in the order of the model's modules; None for slots that stay float.
        quantizers: The number of quantizers for each spec. Slots that read the same tensor share one.
    """

    recipe: Recipe
    specs: Mapping[Slot, QuantSpec | None]
    quantizers: Mapping[QuantSpec, int]

    @property
    def slot_counts(self) -> Counter[QuantSpec]:
        """The number of slots that get each spec."""
        return Counter(spec for spec in self.specs.values() if spec is not None)

    @property
    def needing_data(self) -> list[Slot]:
        """The slots whose ranges calibration has to find. If there are none, no data is needed."""
        return needing_data(self.specs)


def needing_data(specs: Mapping[Slot, QuantSpec | None]) -> list[Slot]:
    """Return the slots whose ranges depend on data: quantized activations whose ranges are not dynamic."""
    return [slot for slot, spec in specs.items() if spec is not None and slot.name != "weight" and not spec.dynamic]


def skeleton(config: ModelConfig, task: str | None = None, *, with_pooler: bool = True) -> Model:
    """Return the wrapped model of a configuration on the meta device, with empty slots: names and shapes, no weights.

    Args:
        config: The configuration.
        task: The task; None for the one that the configuration names.
        with_pooler: Whether a feature extractor has its pooler, see :attr:`qdq.source.ModelDirectory.has_pooler`.

    Raises:
        ConfigError: The family has no such task.
    """
    model = construct(config, task)
    if not with_pooler:
        leave_out_pooler(model)
    wrap(model)
    return model


def plan(model: nn.Module, recipe: Recipe) -> Plan:
    """Return the specs that a recipe gives to the slots of a wrapped model, without changing the model.

    Args:
        model: A wrapped model, on the meta device or any other.
        recipe: The recipe.

    Raises:
        RecipeError: The recipe names slots that this model does not have, or gives a slot a spec that it cannot have.
    """
    specs = recipe.assign(slots(model))
    check_specs(model, specs)
    # Slots of one tensor share a quantizer for each distinct spec.
    shared = (dict.fromkeys(specs[slot] for slot in group) for group in same_tensor(model, list(specs)))
    return Plan(recipe, specs, Counter(_given(spec for group in shared for spec in group)))


def _given(specs: Iterable[QuantSpec | None]) -> list[QuantSpec]:
    return [spec for spec in specs if spec is not None]
