"""Look up integers first, then dequantize only the rows that were looked up."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from exporters.onnx.passes.graph import constant, initializer, is_op, producer

__all__ = ["GatherBeforeDequantizePass"]


class GatherBeforeDequantizePass(ir.passes.InPlacePass):
    """Move the dequantization of an integer table behind the Gather that reads it.

    Case 1: One scale: ``DequantizeLinear(table) -> Gather`` becomes ``Gather(table) -> DequantizeLinear``.
    Case 2: A scale for each row and zero points of 0: the scales are looked up as well, and
    ``Cast(Gather(table)) * Gather(scales)`` is the dequantized row.
    Case 3: Another axis, different zero points, or a computed table: nothing changes.
    Case 4: As case 2, with one zero point for all rows: it is subtracted from the integers.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Move the dequantization behind every Gather of case 1, 2 or 4."""
        modified = False
        for node in list(model.graph):
            if is_op(node, "Gather") and node.attributes.get_int("axis", 0) == 0:
                modified |= _try_move(model.graph, node)
        return ir.passes.PassResult(model, modified)


def _try_move(graph: ir.Graph, gather: ir.Node) -> bool:
    dequantize = producer(gather.inputs[0], "DequantizeLinear")
    if dequantize is None or len(dequantize.inputs) < 3:
        return False  # case 3
    table, scale, zero_point = dequantize.inputs[:3]
    scales, zeros = constant(scale), constant(zero_point)
    if constant(table) is None or scales is None or zeros is None:
        return False  # case 3
    name, indices = gather.name, gather.inputs[1]
    rows = ir.node("Gather", [table, indices], {"axis": 0}, name=f"{name}_rows")
    new = [rows]
    if scales.ndim == 0:  # case 1
        new.append(ir.node("DequantizeLinear", [rows.outputs[0], scale, zero_point], name=dequantize.name))
    elif dequantize.attributes.get_int("axis", 1) == 0 and (zeros == zeros[0]).all():  # case 2
        assert scale is not None
        # DequantizeLinear has no scale per row for a tensor of any rank, so Cast and Mul do its work.
        column = initializer(graph, f"{scale.name}_column", scales[:, np.newaxis])
        values = ir.node("Cast", [rows.outputs[0]], {"to": ir.DataType.FLOAT}, name=f"{name}_values")
        row_scales = ir.node("Gather", [column, indices], {"axis": 0}, name=f"{name}_scales")
        new += [values, row_scales]
        if zeros[0]:  # case 4
            zero = initializer(graph, f"{scale.name}_zero", np.array(zeros[0], np.float32))
            values = ir.node("Sub", [values.outputs[0], zero], name=f"{name}_steps")
            new.append(values)
        new.append(ir.node("Mul", [values.outputs[0], row_scales.outputs[0]], name=dequantize.name))
    else:
        return False  # case 3
    for node in new:
        node.outputs[0].name = f"{node.name}_output_0"
    old, result = gather.outputs[0], new[-1].outputs[0]
    result.shape, result.type = old.shape, old.type
    if old.is_graph_output():
        result.name = old.name
    graph.insert_before(gather, new)
    old.replace_all_uses_with(result, replace_graph_outputs=True)
    graph.remove(gather, safe=True)
    if not dequantize.outputs[0].uses() and not dequantize.outputs[0].is_graph_output():
        graph.remove(dequantize, safe=True)
    return True
