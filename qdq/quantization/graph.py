"""Which tensors the linear layers of a wrapped encoder read, as its blocks say; see :mod:`qdq.models.dataflow`."""

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
    """A :class:`qdq.models.dataflow.LinearRead` of a wrapped model, with the name of its first linear layer.

    The linear layers share one input quantizer, unless an import gave them ranges of their own.
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
    """Return what the wrapped linear layers of all encoders in ``model`` read, from the input to the output."""
    names = {id(module): name for name, module in model.named_modules()}
    return [
        QuantizedRead(name=names[id(read.linears[0])], **{name: getattr(read, name) for name in _FIELDS})
        for module in model.modules()
        if isinstance(module, EncoderModel)
        for read in module.linear_reads()
        if all(type(linear) is QuantLinear for linear in read.linears)
    ]
