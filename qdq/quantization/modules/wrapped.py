"""The interface of wrapped modules."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Protocol, Self, runtime_checkable

from qdq.quantization.quantizer import Quantizer

if TYPE_CHECKING:
    from torch import nn

__all__ = ["Wrapped", "add_slots"]


@runtime_checkable
class Wrapped(Protocol):
    """A float module with quantizers: for each name in ``slots`` there is an attribute ``<name>_quantizer``."""

    slots: ClassVar[tuple[str, ...]]

    @classmethod
    def from_float(cls, module: nn.Module) -> Self:
        """Return the wrapped version of a float module, which shares its Parameters and has empty slots."""
        ...


def add_slots(module: nn.Module, slots: tuple[str, ...], *, training: bool) -> None:
    """Add a quantizer without a spec for each slot, and set the training flag."""
    for slot in slots:
        module.add_module(f"{slot}_quantizer", Quantizer())
    module.train(training)
