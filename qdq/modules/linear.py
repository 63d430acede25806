"""A linear layer with a quantized input and a quantized weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from qdq.modules.wrapped import add_slots

if TYPE_CHECKING:
    from qdq.quantizer import Quantizer

__all__ = ["QuantLinear"]


class QuantLinear(nn.Linear):
    """``y = q_input(x) @ q_weight(W).T + bias``; the bias stays float.

    Slots: ``input`` on ``(batch, seq, in)``, ``weight`` on ``(out, in)``. ``reader`` is its number among the modules
    that share the input quantizer.
    """

    slots: ClassVar[tuple[str, ...]] = ("input", "weight")
    input_quantizer: Quantizer
    weight_quantizer: Quantizer
    reader: int = 0

    @classmethod
    def from_float(cls, module: nn.Module) -> Self:
        """Share the Parameters of an ``nn.Linear``: tied weights stay tied, optimizers keep what they hold."""
        assert isinstance(module, nn.Linear)
        wrapped = cls(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
        wrapped.weight, wrapped.bias = module.weight, module.bias
        add_slots(wrapped, cls.slots, training=module.training)
        return wrapped

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """``(batch, seq, in)`` -> ``(batch, seq, out)``."""
        return F.linear(self.input_quantizer(input, self.reader), self.weight_quantizer(self.weight), self.bias)
