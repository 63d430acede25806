"""Remove the transposed copy that torch's exporter makes of a small table that a look-up and a product share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import onnx_ir as ir

from exporters.onnx.passes.graph import constant, is_op

if TYPE_CHECKING:
    import numpy as np

__all__ = ["TieTablesPass"]


class TieTablesPass(ir.passes.InPlacePass):
    """Let a product read the table of a look-up through a Transpose instead of a transposed copy.

    torch's exporter folds the Transpose of a small constant. A word embedding that is also the weight of the linear
    layer to the vocabulary would be stored twice.

    Case 1: ``MatMul(x, A)`` and ``Gather(B, ids)`` with ``A == B.T``: ``A`` becomes ``Transpose(B)``.
    Case 2: Anything else: nothing changes.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Tie every table of case 1."""
        tables = _stored(model.graph, "Gather", 0)
        copies = _stored(model.graph, "MatMul", 1)
        modified = False
        for copy, array in copies.items():
            for table, rows in tables.items():
                if _is_transposed(array, rows):
                    _tie(model.graph, copy, table)
                    modified = True
                    break
        return ir.passes.PassResult(model, modified)


def _is_transposed(array: np.ndarray, rows: np.ndarray) -> bool:
    """Return whether ``array`` is ``rows`` transposed."""
    if array.shape != rows.shape[::-1] or array.dtype != rows.dtype:
        return False
    # Tables are large, and the first rows nearly always show a difference.
    return bool((array[:, :8] == rows[:8].T).all() and (array == rows.T).all())


def _stored(graph: ir.Graph, op_type: str, index: int) -> dict[ir.Value, np.ndarray]:
    """Return the stored matrices that operators of a type read as their input ``index``."""
    values = dict.fromkeys(node.inputs[index] for node in graph if is_op(node, op_type))
    found = {value: array for value in values if value is not None and (array := constant(value)) is not None}
    return {value: array for value, array in found.items() if array.ndim == 2 and value.name in graph.initializers}


def _tie(graph: ir.Graph, copy: ir.Value, table: ir.Value) -> None:
    first = next(node for node in graph if copy in node.inputs)
    # Transpose(table) is folded by the runtime when it loads the file, so it costs nothing later.
    module = str(first.name).rpartition("/")[0] or first.name
    transpose = ir.node("Transpose", [table], {"perm": [1, 0]}, name=f"{module}/Transpose")
    result = transpose.outputs[0]
    result.name, result.shape, result.type = f"{transpose.name}_output_0", copy.shape, copy.type
    graph.insert_before(first, transpose)
    copy.replace_all_uses_with(result)
    del graph.initializers[str(copy.name)]
