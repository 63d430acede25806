"""A matrix product of two activations with both operands quantized."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from qdq.models.ops import MatMul
from qdq.quantization.modules.wrapped import add_slots

if TYPE_CHECKING:
    from torch import Tensor, nn

    from qdq.quantization.quantizer import Quantizer

__all__ = ["QuantMatMul"]


class QuantMatMul(MatMul):
    """``y = q_input(a) @ q_other(b)``; if the float module transposes b, it is transposed after quantization.

    Slots: ``input`` for the first operand ``(batch, heads, seq, k)``, ``other`` for the second one.
    """

    slots: ClassVar[tuple[str, ...]] = ("input", "other")
    input_quantizer: Quantizer
    other_quantizer: Quantizer

    @classmethod
    def from_float(cls, module: nn.Module) -> Self:
        """Return a wrapped product."""
        assert isinstance(module, MatMul)
        wrapped = cls(transpose_other=module.transpose_other)
        add_slots(wrapped, cls.slots, training=module.training)
        return wrapped

    def forward(self, input: Tensor, other: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Return the product of two operands of ``torch.matmul``."""
        return super().forward(self.input_quantizer(input), self.other_quantizer(other))
