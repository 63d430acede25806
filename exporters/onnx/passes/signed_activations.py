"""Store activations in int8, which the integer products of Arm CPUs take."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.onnx.passes.graph import is_op
from exporters.onnx.passes.unsigned_activations import store_as

__all__ = ["SignedActivationsPass"]


class SignedActivationsPass(ir.passes.InPlacePass):
    """Subtract 128 from integers and zero point. The values that they stand for stay the same.

    Case 1: ``QuantizeLinear(uint8)`` of a computed tensor that only DequantizeLinear nodes with the same parameters
    read: all of them change to int8 with ``zero_point - 128``.
    Case 2: The same with a Clip of fewer bits between: its bounds are shifted as well.
    Case 3: Anything else reads the integers, the tensor is stored, or the node is DynamicQuantizeLinear, which has only
    uint8: nothing changes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Shift every quantizer of case 1 or 2."""
        modified = False
        for node in model.graph:
            if is_op(node, "QuantizeLinear"):
                modified |= store_as(model.graph, node, np.int8)
        return ir.passes.PassResult(model, modified)
