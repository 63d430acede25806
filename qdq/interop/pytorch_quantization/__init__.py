"""Convert checkpoints of QDQBERT and modules of pytorch-quantization, in both directions.

    model = qdq.load("qdqbert-checkpoint")                      # with its ranges; needs no other package
    interop.pytorch_quantization.save(model, "qdqbert-again")   # with the same keys and shapes
    interop.pytorch_quantization.from_live(module)              # a module with QuantLinear or TensorQuantizer
    interop.pytorch_quantization.to_live(module)                # and back

The package pytorch-quantization is only needed for modules in memory.
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
