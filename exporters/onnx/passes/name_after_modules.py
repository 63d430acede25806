"""Name nodes and tensors after the modules they come from."""

from __future__ import annotations

import ast
from collections import Counter

import onnx_ir as ir

__all__ = ["NameAfterModulesPass"]

_SCOPES = "pkg.torch.onnx.name_scopes"


class NameAfterModulesPass(ir.passes.InPlacePass):
    """Give every node the dotted name of its module, a slash and its operator; its outputs likewise.

    Case 1: torch's exporter left the module's path in the node's metadata: that is the name.
    Case 2: it did not: the operator alone, numbered.
    Graph inputs, outputs and initializers keep their names: they are part of the signature or named already.

        encoder.layers.0.attention.query/MatMul        a second one there: encoder.layers.0.attention.query/MatMul_1

    Args:
        prefix: path of the model inside what was exported, left out of the names.
    """

    def __init__(self, prefix: str = "") -> None:
        super().__init__()
        self._prefix = prefix

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rename."""
        taken: Counter[str] = Counter()
        modified = False
        for node in model.graph:
            stem = "/".join(part for part in (self._module(node), node.op_type) if part)
            name = stem if not taken[stem] else f"{stem}_{taken[stem]}"
            taken[stem] += 1
            modified |= node.name != name
            node.name = name
            for index, output in enumerate(node.outputs):
                if not output.is_graph_output():
                    output.name = f"{name}_output_{index}"
        return ir.passes.PassResult(model, modified)

    def _module(self, node: ir.Node) -> str:
        scopes = ast.literal_eval(node.metadata_props.get(_SCOPES, "[]"))
        path = scopes[-2] if len(scopes) > 1 else ""  # the last scope is the operation itself
        if path == self._prefix:
            return ""
        return str(path).removeprefix(f"{self._prefix}.")
