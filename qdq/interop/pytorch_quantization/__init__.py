"""The way over from pytorch-quantization and from QDQBERT, and the way back.

    model = qdq.load("qdqbert-checkpoint")                         ranges and all, without the package
    interop.pytorch_quantization.save(model, "qdqbert-again")      the same keys and shapes
    interop.pytorch_quantization.from_live(module)                 a module that holds its QuantLinear, TensorQuantizer
    interop.pytorch_quantization.to_live(module)                   and back

The package itself is only needed for live modules.
"""

from qdq.interop.pytorch_quantization.checkpoint import (
    ACTIVATION,
    WEIGHT,
    amax_tensors,
    is_quantizer_key,
    load_amax,
    save,
)
from qdq.interop.pytorch_quantization.live import from_live, to_live

__all__ = ["ACTIVATION", "WEIGHT", "amax_tensors", "from_live", "is_quantizer_key", "load_amax", "save", "to_live"]
