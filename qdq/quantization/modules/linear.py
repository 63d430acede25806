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

    Slots: ``input`` for ``(batch, seq, in)``, ``weight`` for ``(out, in)``.

    What a transform subtracts from the input is added again through the bias. With the input's ``shift`` and
    ``smoothing_scale`` and the weight's ``row_scale``, the bias is
    ``row_scale * b + T(W) @ (smoothing_scale * shift)``, where T(W) is the transformed weight.

    Attributes:
        bias_correction: ``(out,)``, float32, or None. It corrects the change of the mean output by quantization, and is
            used only while the layer quantizes.
        reader: The number of this module among those that share the input quantizer.
        is_folded: Whether the bias includes all of the above; see :mod:`qdq.quantization.fold`.
    """

    slots: ClassVar[tuple[str, ...]] = ("input", "weight")
    input_quantizer: Quantizer
    weight_quantizer: Quantizer
    bias_correction: Tensor | None
    reader: int = 0
    is_folded: bool = False

    @classmethod
    def from_float(cls, module: nn.Module) -> Self:
        """Return a wrapped layer that shares the Parameters, so that tied weights and optimizers still work."""
        assert isinstance(module, nn.Linear)
        with Uninitialized():
            wrapped = cls(module.in_features, module.out_features, bias=module.bias is not None, device="meta")
        wrapped.weight, wrapped.bias = module.weight, module.bias
        wrapped.register_buffer("bias_correction", None)
        add_slots(wrapped, cls.slots, training=module.training)
        return wrapped

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 (torch's name)
        """Return ``(batch, seq, out)`` for ``(batch, seq, in)``."""
        return F.linear(self.input_quantizer(input, self.reader), self.weight_quantizer(self.weight), self.whole_bias())

    def whole_bias(self) -> Tensor | None:
        """Return the bias with what transforms and correction add to it, ``(out,)``.

        It is computed in each call, because training changes the weights.
        """
        bias: Tensor | None = self.bias
        if self.is_folded:
            return bias
        of_input, of_weight = self.input_quantizer.transform, self.weight_quantizer.transform
        if bias is not None and of_weight is not None and of_weight.row_scale is not None:
            bias = bias * of_weight.row_scale.to(bias.dtype)
        if of_input is not None and of_input.shift is not None:
            shift = of_input.shift if of_input.smoothing_scale is None else of_input.shift * of_input.smoothing_scale
            weight = self.weight if of_weight is None else of_weight(self.weight)
            constant = F.linear(shift.to(weight.dtype), weight)
            bias = constant if bias is None else bias + constant
        if self.bias_correction is not None and self.quantizes:
            correction = self.bias_correction.to(self.weight.dtype)
            bias = correction if bias is None else bias + correction
        return bias

    @property
    def quantizes(self) -> bool:
        """Whether the input or the weight is quantized."""
        return Mode.QUANTIZE in (self.input_quantizer.mode, self.weight_quantizer.mode)
