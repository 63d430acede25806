"""What every wrapped module has in common."""

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
        """The wrapped twin of ``module``: shares its Parameters, every slot empty."""
        ...


def add_slots(module: nn.Module, slots: tuple[str, ...], *, training: bool) -> None:
    """Put an empty quantizer into each slot and take over the training flag."""
    for slot in slots:
        module.add_module(f"{slot}_quantizer", Quantizer())
    module.train(training)
