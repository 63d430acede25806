"""Slots: the named positions in a wrapped model that each hold one quantizer."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KINDS", "SLOTS", "Slot"]

KINDS = ("linear", "embedding", "matmul", "add")
"""The kinds of wrapped modules."""

SLOTS = ("input", "weight", "other")
"""The slots of a module; ``other`` is the second operand of a product or the residual of an addition."""


@dataclass(frozen=True)
class Slot:
    """The address of one slot.

    Args:
        module: The name of the module, such as ``encoder.layers.0.attention.query``.
        kind: The kind of the module, one of :data:`KINDS`.
        name: The name of the slot in the module, one of :data:`SLOTS`.
    """

    module: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"
