"""Shift unsigned activations to signed ones, which the integer products of Arm CPUs want."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.onnx.passes.graph import is_op
from exporters.onnx.passes.unsigned_activations import hold_as

__all__ = ["SignedActivationsPass"]


class SignedActivationsPass(ir.passes.InPlacePass):
    """Subtract 128 from integers and zero point: the same grid, held in int8.

    Case 1: ``QuantizeLinear(uint8)`` of a computed tensor, read by DequantizeLinear nodes of the same parameters alone:
    all of them change to int8 with ``zero_point - 128``.
    Case 2: the same with a Clip of fewer bits between: its bounds are shifted too.
    Case 3: anything else reads the integers, the tensor is stored, or DynamicQuantizeLinear made them, which knows
    uint8 alone: left as it is.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Shift."""
        modified = False
        for node in model.graph:
            if is_op(node, "QuantizeLinear"):
                modified |= hold_as(model.graph, node, np.int8)
        return ir.passes.PassResult(model, modified)
