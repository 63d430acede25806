"""A model that an export refuses stays what it was."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from qdq.quantization.modules import QuantLinear
from qdq.quantization.wrap import named_slots

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn

__all__ = ["unchanged_when_refused"]


@contextmanager
def unchanged_when_refused(model: nn.Module) -> Iterator[None]:
    """Put the quantizers of ``model`` back, and what hangs on them, when the context ends with an error."""
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
