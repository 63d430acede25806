"""Slots: the named sockets of a wrapped model, each of which holds one quantizer."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["KINDS", "SLOTS", "Slot"]

KINDS = ("linear", "embedding", "matmul", "add")
SLOTS = ("input", "weight", "other")


@dataclass(frozen=True)
class Slot:
    """The address of one slot: ``encoder.layers.0.attention.query``, ``linear``, ``input``."""

    module: str
    kind: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"
