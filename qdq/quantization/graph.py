"""Find the tensors that the linear layers of a wrapped encoder read.

The blocks of a model describe them; see :mod:`qdq.models.dataflow`.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from qdq.models.model import EncoderModel
from qdq.quantization.modules import QuantLinear

if TYPE_CHECKING:
    from torch import nn

    from qdq.quantization.modules import QuantAdd, QuantMatMul

__all__ = ["QuantizedRead", "quantized_reads"]


@dataclass(frozen=True, kw_only=True)
class QuantizedRead:
    """A :class:`qdq.models.dataflow.LinearRead` of a wrapped model, whose modules have quantizers.

    The linear layers share one input quantizer, unless an imported checkpoint has a range for each of them.

    Args:
        name: The name of the first linear layer.
        linears: All linear layers that read the tensor.
        norm: The norm whose output it is, if any.
        source: The linear layer whose output it is, if any.
        activation: The activation function whose output it is, if any.
        value: For the output projection of attention: the value projection.
        context: For the output projection of attention: the product of attention weights and values.
        add: The residual addition that also reads the tensor, if any.
        branch: The linear layer whose output ``add`` adds to the tensor.
    """

    name: str
    linears: tuple[QuantLinear, ...]
    norm: nn.Module | None = None
    source: QuantLinear | None = None
    activation: nn.Module | None = None
    value: QuantLinear | None = None
    context: QuantMatMul | None = None
    add: QuantAdd | None = None
    branch: QuantLinear | None = None


_FIELDS = tuple(field.name for field in fields(QuantizedRead) if field.name != "name")


def quantized_reads(model: nn.Module) -> list[QuantizedRead]:
    """Return the inputs of the wrapped linear layers of all encoders in ``model``, in the order of the computation.

    Linear layers that are not wrapped are left out.
    """
    names = {id(module): name for name, module in model.named_modules()}
    # A model may hold several encoders (REALM's scorer); each describes its own layers.
    return [
        QuantizedRead(name=names[id(read.linears[0])], **{name: getattr(read, name) for name in _FIELDS})
        for module in model.modules()
        if isinstance(module, EncoderModel)
        for read in module.linear_reads()
        if all(type(linear) is QuantLinear for linear in read.linears)
    ]
