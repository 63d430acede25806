"""Prevent a fusion of ONNX Runtime that is slower than the operators it replaces."""

from __future__ import annotations

import onnx_ir as ir

from exporters.onnx.passes.graph import is_op, producer

__all__ = ["ResidualSumPass"]


class ResidualSumPass(ir.passes.InPlacePass):
    """Write the addition in front of a LayerNormalization as Sum, which is the same for two operands.

    ONNX Runtime fuses ``Add -> LayerNormalization`` into SkipLayerNormalization. On CPUs that kernel takes several
    times as long as the two it replaces. The pattern of the fusion does not match a Sum.

    Case 1: ``Add -> LayerNormalization``, with or without other readers of the sum: the Add becomes a Sum.
    Case 2: Anything else in front of the normalization: nothing changes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite every Add of case 1."""
        modified = False
        for node in model.graph:
            if is_op(node, "LayerNormalization"):
                add = producer(node.inputs[0], "Add")
                if add is not None:
                    add.op_type = "Sum"
                    modified = True
        return ir.passes.PassResult(model, modified)
