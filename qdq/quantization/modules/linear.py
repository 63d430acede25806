"""A linear layer with a quantized input and a quantized weight."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Self

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from qdq.models.uninitialized import Uninitialized
from qdq.quantization.modules.wrapped import add_slots
from qdq.quantization.quantizer import Mode

if TYPE_CHECKING:
    from qdq.quantization.quantizer import Quantizer

__all__ = ["QuantLinear"]


class QuantLinear(nn.Linear):
    """``y = q_input(x) @ q_weight(W).T + bias``; the bias stays float.

    Slots: ``input`` on ``(batch, seq, in)``, ``weight`` on ``(out, in)``. ``reader`` is its number among the modules
    that share the input quantizer.

    What a transform takes from the input comes back through the bias: with the input's ``shift`` and ``factor`` and the
    weight's ``rows``, the bias is ``rows * b + T(W) @ (factor * shift)``, T(W) being the transformed weight.
    ``bias_correction`` ``(out,)``, float32 or None, makes good what quantization does to the mean of the output; it
    counts only while the layer quantizes.
    """

    slots: ClassVar[tuple[str, ...]] = ("input", "weight")
    input_quantizer: Quantizer
    weight_quantizer: Quantizer
    bias_correction: Tensor | None
    reader: int = 0
    is_folded: bool = False  # the bias holds all of that already; see qdq.quantization.fold

    @classmethod
    def from_float(cls, module: nn.Module) -> Self:
        """Share the Parameters of an ``nn.Linear``: tied weights stay tied, optimizers keep what they hold."""
        assert isinstance(module, nn.Linear)
        with Uninitialized():
            wrapped = cls(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
        wrapped.weight, wrapped.bias = module.weight, module.bias
        wrapped.register_buffer("bias_correction", None)
        add_slots(wrapped, cls.slots, training=module.training)
        return wrapped

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """``(batch, seq, in)`` -> ``(batch, seq, out)``."""
        return F.linear(self.input_quantizer(input, self.reader), self.weight_quantizer(self.weight), self.whole_bias())

    def whole_bias(self) -> Tensor | None:
        """The bias with what transforms and correction add to it, ``(out,)``; computed anew, for weights may change."""
        bias: Tensor | None = self.bias
        if self.is_folded:
            return bias
        of_input, of_weight = self.input_quantizer.transform, self.weight_quantizer.transform
        if bias is not None and of_weight is not None and of_weight.rows is not None:
            bias = bias * of_weight.rows.to(bias.dtype)
        if of_input is not None and of_input.shift is not None:
            shift = of_input.shift if of_input.factor is None else of_input.shift * of_input.factor
            weight = self.weight if of_weight is None else of_weight(self.weight)
            constant = F.linear(shift.to(weight.dtype), weight)
            bias = constant if bias is None else bias + constant
        if self.bias_correction is not None and self.quantizes:
            correction = self.bias_correction.to(self.weight.dtype)
            bias = correction if bias is None else bias + correction
        return bias

    @property
    def quantizes(self) -> bool:
        """Whether input or weight are being rounded."""
        return Mode.QUANTIZE in (self.input_quantizer.mode, self.weight_quantizer.mode)
