"""Keep ONNX Runtime from a fusion that is slower than what it replaces."""

from __future__ import annotations

import onnx_ir as ir

from exporters.onnx.passes.graph import is_op, producer

__all__ = ["ResidualSumPass"]


class ResidualSumPass(ir.passes.InPlacePass):
    """Write the addition in front of a LayerNormalization as Sum, which is the same for two operands.

    ONNX Runtime fuses ``Add -> LayerNormalization`` into SkipLayerNormalization by default. On CPUs that kernel takes
    several times as long as the two it replaces; a Sum is not part of its pattern.

    Case 1: ``Add -> LayerNormalization``, whoever else reads the sum: the Add becomes a Sum.
    Case 2: anything else in front of the normalization: left alone.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite."""
        modified = False
        for node in model.graph:
            if is_op(node, "LayerNormalization"):
                add = producer(node.inputs[0], "Add")
                if add is not None:
                    add.op_type = "Sum"
                    modified = True
        return ir.passes.PassResult(model, modified)
