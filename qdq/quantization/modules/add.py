"""A residual addition with both operands quantized."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from qdq.models.ops import Add
from qdq.quantization.modules.wrapped import add_slots

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qdq.quantization.quantizer import Quantizer

__all__ = ["QuantAdd"]


class QuantAdd(Add):
    """``y = q_input(branch) + q_other(residual)``.

    Slots: ``input`` for the branch, ``other`` for the residual, both ``(batch, seq, hidden)``. The shift that the
    transform of the residual subtracts is added again to the sum.
    """

    slots: ClassVar[tuple[str, ...]] = ("input", "other")
    input_quantizer: Quantizer
    other_quantizer: Quantizer

    @classmethod
    def from_float(cls, module: nn.Module) -> Self:
        """Return a wrapped addition."""
        assert isinstance(module, Add)
        wrapped = cls()
        add_slots(wrapped, cls.slots, training=module.training)
        return wrapped

    def forward(self, input: Tensor, other: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Return the sum of two tensors ``(batch, seq, hidden)``."""
        transform = self.other_quantizer.transform
        branch, residual = self.input_quantizer(input), self.other_quantizer(other)
        if transform is not None and transform.shift is not None:
            branch = branch + transform.shift.to(branch.dtype)
        return super().forward(branch, residual)
