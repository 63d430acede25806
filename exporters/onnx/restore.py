"""Restore the quantizers of a model when its export fails."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from qdq.quantization.modules import QuantLinear
from qdq.quantization.wrap import named_slots

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

__all__ = ["restored_on_error"]


@contextmanager
def restored_on_error(model: nn.Module) -> Iterator[None]:
    """Restore the quantizers of ``model``, their modes and the bias corrections if the context ends with an error."""
    quantizers = [
        (model.get_submodule(slot.module), f"{slot.name}_quantizer", quantizer, quantizer.mode)
        for slot, quantizer in named_slots(model)
    ]
    linears = [
        (module, module.bias_correction, module.reader) for module in model.modules() if isinstance(module, QuantLinear)
    ]
    try:
        yield
    except BaseException:
        for module, name, quantizer, mode in quantizers:
            setattr(module, name, quantizer)
            quantizer.mode = mode
        for linear, correction, reader in linears:
            linear.bias_correction, linear.reader = correction, reader
        raise
